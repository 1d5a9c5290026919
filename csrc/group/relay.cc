// Chunks are numbered anew here, so that those of one message follow one another in memory.
#include "group/relay.h"

#include <algorithm>
#include <tuple>

#include "schedule/builders.h"

namespace hier {

namespace {

// All chunks, by the nodes that they leave and reach, and by rail.
std::vector<int> in_order_of_messages(const Topology& topology, int rails) {
  std::vector<int> chunks;
  for (const auto& sources : topology.members)
    for (const auto& targets : topology.members)
      for (int rail = 0; rail < rails; ++rail)
        for (const int source : sources)
          for (size_t place = static_cast<size_t>(rail); place < targets.size();
               place += static_cast<size_t>(rails))
            chunks.push_back(source * topology.world_size + targets[place]);
  return chunks;
}

// The moves of one rank; both ends of a message find the same ones in it.
Schedule own_moves(const Schedule& schedule, int rank, const std::vector<int>& numbers) {
  Schedule result{schedule.world_size, schedule.num_chunks, {}};
  for (const Round& round : schedule.rounds) {
    Round moves;
    for (const Move& m : round) {
      if (m.src != rank && m.dst != rank) continue;
      for (int chunk = m.lo; chunk < m.hi; ++chunk) {
        const int number = numbers[static_cast<size_t>(chunk)];
        moves.push_back({m.src, m.dst, number, number + 1, m.reduce});
      }
    }
    std::ranges::sort(moves, {}, [](const Move& m) { return std::tuple(m.src, m.dst, m.lo); });
    Round& joined = result.rounds.emplace_back();
    for (const Move& m : moves) append(joined, m);
  }
  return result;
}

void append(std::vector<Relay::Copy>& copies, size_t from, size_t to, size_t count) {
  if (!copies.empty() && copies.back().from + copies.back().count == from &&
      copies.back().to + copies.back().count == to) {
    copies.back().count += count;
  } else {
    copies.push_back({from, to, count});
  }
}

}  // namespace

Relay make_relay(const Schedule& schedule, const Topology& topology,
                 std::span<const int> machine_of_rank, int rails, size_t part, size_t segment) {
  const int me = topology.rank, p = topology.world_size;
  const std::vector<int> chunks = in_order_of_messages(topology, rails);
  std::vector<int> numbers(chunks.size());
  for (size_t i = 0; i < chunks.size(); ++i)
    numbers[static_cast<size_t>(chunks[i])] = static_cast<int>(i);
  const Schedule own = own_moves(schedule, me, numbers);
  std::vector<size_t> bounds(numbers.size() + 1);  // of what passes here; the rest has no room
  for (const Round& round : own.rounds)
    for (const Move& m : round)
      for (int i = m.lo; i < m.hi; ++i) bounds[static_cast<size_t>(i) + 1] = part;
  for (size_t i = 1; i < bounds.size(); ++i) bounds[i] += bounds[i - 1];
  const auto place = [&](int source, int target) {
    return bounds[static_cast<size_t>(numbers[static_cast<size_t>(source * p + target)])];
  };
  Relay relay{lower(own, me, bounds, segment, machine_of_rank), bounds.back(), {}, {}};
  for (size_t i = 0; i < relay.program.num_steps(); ++i) {
    Step& step = relay.program.steps[i];
    step.chunk = chunks[static_cast<size_t>(step.chunk)];  // as errors call it
  }
  for (int other = 0; other < p; ++other) {
    if (other == me) continue;
    const size_t offset = static_cast<size_t>(other) * part;
    append(relay.in, offset, place(me, other), part);
    append(relay.out, place(other, me), offset, part);
  }
  return relay;
}

}  // namespace hier
