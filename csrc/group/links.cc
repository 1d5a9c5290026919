// Channels of a node.
#include "group/links.h"

#include "transport/shm.h"

namespace hier {

void open_rings(const Arena& arena, int index, const Topology& topology, Doorbells& bells,
                Channels& channels) {
  const int me = topology.local_rank;
  const auto view = [&](int from, int to) {
    const ArenaLayout& layout = arena.layout();
    auto* ring = reinterpret_cast<ShmRing*>(arena.raw(layout.ring_at(index, from, to)));
    return ShmRingView{ring, arena.raw(layout.ring_data_at(index, from, to)), layout.ring_bytes};
  };
  for (int other = 0; other < topology.local_size; ++other) {
    if (other == me) continue;
    channels[topology.neighbours()[other]] = std::make_unique<ShmChannel>(
        view(me, other), view(other, me), &bells, other,
        [&arena](const std::byte* begin, size_t bytes) { arena.allocate(begin, bytes); });
  }
}

std::vector<Channel*> pointers(const Channels& channels) {
  std::vector<Channel*> result;
  for (const auto& channel : channels) result.push_back(channel.get());
  return result;
}

}  // namespace hier
