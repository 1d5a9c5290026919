// One rank of a simulated group: a process with memory of its own, a program, and a real member.
#pragma once

#include <algorithm>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/doorbell.h"
#include "group/member.h"
#include "group/order.h"
#include "group/planner.h"
#include "memory.h"
#include "model.h"
#include "wire.h"

namespace hier::simulation {

// What a life must not show: wrong numbers, late ends, strange errors.
struct Wrong : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Rings by waking the neighbour in virtual time.
class SimulatedBells final : public Doorbells {
 public:
  SimulatedBells() = default;
  SimulatedBells(SleepWord* words, const Topology& topology, std::function<void(int rank)> wake)
      : Doorbells(words, topology.local_size, topology.local_rank),
        neighbours_(topology.neighbours()),
        wake_(std::move(wake)) {}

 private:
  void rouse(int local_rank) override {
    const Unrationed kernel;
    wake_(neighbours_[static_cast<size_t>(local_rank)]);
  }
  std::vector<int> neighbours_;
  std::function<void(int rank)> wake_;
};

// Of a node: no arena for a rank that is alone, no symmetric memory where buffers are private.
struct SharedMemory {
  std::shared_ptr<Arena> arena;
  std::shared_ptr<SharedMapping> symmetric;
};

class Rank {
 public:
  // What is passed by reference outlives this.
  Rank(const Scenario& scenario, const Model& model, Timing& timing, Random& random, int rank,
       Links links, const SharedMemory& shared, std::function<void(int rank)> ring);

  // True if anything was done; else wake_by() says when to come again, if nothing happens before.
  // `by_clock`: nothing has happened.
  bool step(bool by_clock);
  Clock::time_point wake_by() const { return wake_by_; }
  void arrived(Carries what);

  void kill();
  void abort();
  void leave();                                          // with whatever is in flight
  void jump(Clock::duration ahead) { ahead_ += ahead; }  // its clock
  void pause(Clock::time_point until) { paused_until_ = until; }
  void ration(int64_t allocations) { allocations_left_ = allocations; }
  Clock::time_point paused_until() const { return paused_until_; }
  // Killed, or has left.
  bool over() const { return !member_; }
  bool killed() const { return killed_; }

  // A call of the program, since it was made.
  struct Made {
    size_t operation;
    std::shared_ptr<Work> work;  // null: it was refused
    Clock::time_point at;
    std::optional<Clock::time_point> ended;
    std::exception_ptr error;
  };
  const std::vector<Made>& made() const { return made_; }
  bool failed() const {
    return std::ranges::any_of(made_, [](const Made& made) { return made.error != nullptr; });
  }
  // Nothing has touched memory after its call; "" or what is wrong.
  std::string check_memory() const;

 private:
  struct Buffer {
    std::vector<Value> own;
    std::span<Value> memory;  // all of that, or a part of symmetric memory
    bool scribbled = false;   // all over, since no call has it
  };

  Clock::time_point now() const;
  bool use();
  bool say_goodbye();
  bool waits() const;
  bool make(size_t number);
  std::shared_ptr<Work> call(const Operation& op, size_t number);
  std::shared_ptr<Work> post(const Operation& op, size_t number);
  bool collect();
  void ended(Made& made);
  void check(const Made& made) const;
  bool in_use(int buffer) const;
  bool drive(bool by_clock);
  bool take_turn(bool by_clock);
  Buffer& buffer_of(size_t number);
  void lay_out(const std::shared_ptr<SharedMapping>& symmetric);
  void scribble(Buffer& buffer);

  const Scenario& scenario_;
  const Model& model_;
  Timing& timing_;
  Random& random_;
  const int rank_;
  GroupConfig config_;
  Topology topology_;
  std::shared_ptr<Arena> arena_;
  SimulatedBells bells_;
  std::unique_ptr<Planner> planner_;
  std::unique_ptr<Member> member_;
  MemoryOrder order_;
  RunNumbers numbers_;
  std::vector<Buffer> buffers_;             // the program's, then one for each message
  std::vector<std::vector<Value>> inputs_;  // of alltoalls, by operation
  std::vector<Made> made_;
  size_t next_ = 0, collected_ = 0;
  std::optional<size_t> postponed_;  // a receive that another call goes before
  bool killed_ = false, asleep_ = false;
  int drained_ = 0;  // turns since it began
  Clock::time_point drain_until_{};
  Arrivals arrivals_;
  Clock::time_point wake_by_{}, paused_until_{};
  Clock::duration ahead_{};
  int64_t allocations_left_ = kPlenty;
};

}  // namespace hier::simulation
