// Offsets within the arena: sleep words, ports, ring control words, ring bytes, slots.
#include "local/arena.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>

#include "base/error.h"

namespace hier {

namespace {

constexpr size_t kRingControlBytes = 128;
constexpr size_t kPage = 4096;

size_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }
size_t to_size(int n) { return static_cast<size_t>(n); }

}  // namespace

ArenaLayout ArenaLayout::plan(int local_size, int lanes) {
  const size_t rings = std::max<size_t>(1, to_size(local_size * (local_size - 1) * (lanes + 1)));
  const size_t share = (size_t{32} << 20) / rings;
  const size_t least = std::min(size_t{32} << 10, to_size(local_size) * (size_t{4} << 20) / rings);
  // The machine's cores, not those that this rank is bound to: all ranks must find the same.
  const size_t turns = to_size(local_size) / std::max<size_t>(1, ::sysconf(_SC_NPROCESSORS_ONLN));
  const size_t slot = kSlotBytes * std::bit_floor(std::max<size_t>(1, turns / 2));
  return {local_size, lanes, std::min(slot, kMostSlotBytes), kNumSlots,
          std::bit_floor(std::clamp(share, least, size_t{512} << 10))};
}

size_t ArenaLayout::port_at(int lane, int rank) const {
  return pages(to_size(local_size) * sizeof(SleepWord)) +
         lane_index(lane, rank) * sizeof(ProgressCounters);
}

size_t ArenaLayout::ring_at(int lane, int from, int to) const {
  return pages(port_at(lanes, 0)) +
         (lane_index(lane, from) * to_size(local_size) + to_size(to)) * kRingControlBytes;
}

size_t ArenaLayout::ring_data_at(int lane, int from, int to) const {
  // A rank has no ring to itself: `to` counts the others only.
  const size_t other = to_size(to > from ? to - 1 : to);
  return words_bytes() + (lane_index(lane, from) * to_size(local_size - 1) + other) * ring_bytes;
}

size_t ArenaLayout::slot_at(int lane, int rank, uint64_t piece) const {
  return pages(ring_data_at(lanes + 1, 0, 0)) +
         (lane_index(lane, rank) * to_size(num_slots) + piece % to_size(num_slots)) * slot_bytes;
}

size_t ArenaLayout::words_bytes() const { return pages(ring_at(lanes + 1, 0, 0)); }

size_t ArenaLayout::bytes() const { return slot_at(lanes, 0, 0); }

Arena::Arena(Fd file, ArenaLayout layout)
    : file_(std::move(file)),
      mapping_(SharedMapping::open(file_.get(), layout.bytes())),
      layout_(layout) {
  allocate(raw(0), layout_.words_bytes());
}

void Arena::allocate(const std::byte* begin, size_t bytes) const {
  const off_t offset = begin - mapping_->data();
  while (::fallocate(file_.get(), 0, offset, static_cast<off_t>(bytes)) != 0) {
    if (errno == EINTR) continue;
    throw SystemError(errno, "cannot allocate " + std::to_string(bytes) +
                                 " B of a node's shared memory (free memory on this host, or "
                                 "raise the memory limit of the container)");
  }
}

}  // namespace hier
