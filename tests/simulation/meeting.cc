// Connections that are made at the first use of a pair of ranks: as the connectors of two ranks do,
// each in a thread of its process.
#include <utility>

#include "life.h"

namespace hier::simulation {

End& Life::end_of(int rank, int other) {
  ends_.resize(scenario_.node_of_rank.size() * scenario_.node_of_rank.size());
  auto& place = ends_[static_cast<size_t>(rank * scenario_.world_size() + other)];
  if (place) return *place;
  place = std::make_unique<End>();
  if (scenario_.on_demand) {
    place->state = End::State::waiting;
    place->want = [this, rank, other] { ask(rank, other); };
  }
  return *place;
}

void Life::at_time(Clock::time_point at, std::function<void()> action) {
  later_.push_back(std::move(action));
  events_.push({at, -static_cast<int>(scenario_.faults.size() + later_.size()), std::nullopt});
}

void Life::ask(int rank, int other) {
  const auto most = static_cast<size_t>(scenario_.most_delay.count());
  at_time(timing_.now + Clock::duration(random_.between(most / 10, 4 * most)),
          [this, rank, other] { meet(rank, other); });
}

// The two processes are there, or one is gone, or nothing passes between them.
void Life::meet(int rank, int other) {
  if (end_of(rank, other).met || at(rank).over()) return;
  for (const int one : {rank, other}) {  // a process that is stopped connects nobody
    if (at(one).paused_until() <= timing_.now) continue;
    return at_time(at(one).paused_until(), [this, rank, other] { meet(rank, other); });
  }
  if (wire(rank, other, 0).in_black_hole() || wire(other, rank, 0).in_black_hole()) {
    return at_time(timing_.now + std::chrono::seconds(10),
                   [this, rank, other] { settle(rank, other, End::State::unanswered); });
  }
  if (at(other).over()) return settle(rank, other, End::State::refused);
  end_of(rank, other).met = end_of(other, rank).met = true;
  const bool first = random_.one_in(2);
  settle(first ? rank : other, first ? other : rank, End::State::connected);
  const auto most = static_cast<size_t>(scenario_.most_delay.count());
  at_time(timing_.now + Clock::duration(random_.between(0, most)), [this, first, rank, other] {
    settle(first ? other : rank, first ? rank : other, End::State::connected);
  });
}

void Life::settle(int rank, int other, End::State state) {
  End& end = end_of(rank, other);
  if (end.state != End::State::waiting) return;
  end.state = state;
  end.want = nullptr;
  events_.push({timing_.now, rank, Carries::messages});
}

}  // namespace hier::simulation
