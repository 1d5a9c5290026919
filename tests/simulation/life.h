// One life of a group: all its ranks in one thread, under virtual time, with the faults of a
// scenario; and what it must not show.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <vector>

#include "model.h"
#include "rank.h"
#include "scenario.h"
#include "wire.h"

namespace hier::simulation {

class Life {
 public:
  explicit Life(const Scenario& scenario, bool trace = false);

  // "" or what is wrong.
  std::string run();
  size_t steps() const { return steps_; }
  Clock::duration lasted() const { return timing_.now - kBegin; }

 private:
  struct Event {
    Clock::time_point at;
    int rank;                     // below 0: number -1 - rank of the faults, and then of `later_`
    std::optional<Carries> what;  // none: its clock
    bool operator>(const Event& other) const { return at > other.at; }
  };
  static constexpr Clock::time_point kBegin{std::chrono::hours(1)};

  Links connect(int rank);
  Wire& wire(int from, int to, size_t kind);
  // meeting.cc
  End& end_of(int rank, int other);
  void ask(int rank, int other);
  void meet(int rank, int other);
  void settle(int rank, int other, End::State state);
  void at_time(Clock::time_point at, std::function<void()> action);
  SharedMemory shared_memory_of(int node) const;
  std::shared_ptr<Arena> arena_of(int node, int local_size) const;
  Rank& at(int rank) const { return *ranks_[static_cast<size_t>(rank)]; }
  void live();
  void call(int rank);  // something has happened that it may wait for
  void deliver();
  bool ready(int rank) const;
  void apply(size_t fault);
  void apply_to_wires(const Fault& fault);
  void swallow(const Fault& fault);
  void say(const std::string& text) const;

  // life_check.cc
  void check_ends() const;
  void tell_ends() const;
  void check_error(const Rank::Made& made, int rank) const;
  bool explains(const Fault& fault, const std::exception_ptr& error, int rank) const;
  Clock::time_point first_told() const;
  void check_time(const Rank::Made& made, int rank, Clock::time_point told) const;

  const Scenario& scenario_;
  const bool trace_;
  Timing timing_;
  Random random_;
  const Model model_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::vector<std::unique_ptr<Wire>> wires_;  // by kind, writer and reader
  std::vector<std::unique_ptr<End>> ends_;    // by rank and other rank
  std::vector<std::unique_ptr<Rank>> ranks_;  // their channels use those
  std::vector<std::function<void()>> later_;
  std::vector<char> awake_;
  std::vector<char> called_;   // by more than its clock
  std::vector<char> applied_;  // faults that had any effect
  size_t steps_ = 0;
};

}  // namespace hier::simulation
