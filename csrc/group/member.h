// One rank's part of a group, as a state that advances: what is in flight, what it knows of the
// other ranks, and its end. It never blocks, starts no thread and reads no clock; so a simulation
// can hold all ranks of a group in one thread. See driver.h for threads and sleep.
//
// The first error wins: it reaches every rank over the control links, and ends everything in
// flight.
#pragma once

#include <poll.h>

#include <atomic>
#include <deque>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "engine/messages.h"
#include "group/call.h"
#include "group/config.h"
#include "group/failure.h"
#include "group/lanes.h"
#include "group/links.h"
#include "group/run.h"
#include "group/topology.h"
#include "group/watch.h"

namespace hier {

// What a wait has told; to claim too much costs system calls, no more.
struct Arrivals {
  bool messages = false;  // on the sockets of messages
  bool control = false;   // on control links
};

struct Progress {
  bool moved = false;
  Clock::time_point wake_by;  // the latest to step again where nothing moved
};

class Member {
 public:
  // The longest between two looks around while something is in flight.
  static constexpr std::chrono::milliseconds kLookInterval{50};

  // `arena` is null for a rank that is alone on its node. What is passed by reference outlives
  // this. `at_failure` is called once nothing is in flight any more, before works end: it lets go
  // of what streams of devices wait for.
  Member(const GroupConfig& config, const Topology& topology, Links links,
         const std::shared_ptr<Arena>& arena, Doorbells* bells, std::function<void()> at_failure);

  // Of the thread that drives, but for what says otherwise. Each reports its errors by ending
  // everything in flight: see failure().
  std::unique_ptr<Run>& make_room(uint32_t run) { return lanes_.make_room(run); }
  void accept(std::unique_ptr<Run> run);
  void accept(std::deque<std::shared_ptr<Transfer>> transfers);
  // Moves what can move; true if anything did.
  bool turn();
  // Likewise, and looks at everything else: the other ranks, and the time.
  Progress step(Clock::time_point now, Arrivals arrivals);
  // What to wait for where nothing moved. Arrivals of messages are in [messages, control) then,
  // those on control links from there on.
  struct Places {
    size_t messages, control;
  };
  Places blocked_on(std::vector<pollfd>& fds) const;
  Clock::time_point looked() const { return watch_.looked(); }
  void pass_on() { watch_.pass_on(); }                           // see Watch
  std::vector<int> gone_ranks() { return watch_.gone_ranks(); }  // see Watch
  // Receives that no rank will send for end from now on; ranks that leave tell each other that they
  // send no more. Behind all that this rank sends.
  void drain() { draining_ = true; }
  bool drained() const { return idle() && messages_->flushed(); }
  bool idle() const { return lanes_.idle() && messages_->idle(); }
  void end(const std::exception_ptr& error);  // everything in flight, with this error

  // From any thread: poisons the group, on every rank. What is in flight ends at the next step.
  void fail(const std::exception_ptr& error);
  Failure& failure() { return failure_; }
  Traffic traffic() const { return traffic_.read(); }
  std::atomic<size_t>& in_flight() { return in_flight_; }

  // A message of which `work` tells the end. From any thread.
  std::shared_ptr<Transfer> make_transfer(const Message& message, const std::shared_ptr<Work>& work,
                                          Clock::time_point now, double timeout);
  // The other hosts have all messages of this rank's.
  bool delivered() const;
  // Says goodbye; nothing can be called after it. See Watch::leave.
  std::string leave();

 private:
  struct Suspicion {
    BrokenStream broken;
    std::optional<Clock::time_point> until;  // its reason may come: set at the next step
  };

  template <class Move>
  bool guarded(Move move);
  bool move();
  bool look(Clock::time_point now, Arrivals arrivals);
  bool investigate(Clock::time_point now);
  void end_hopeless_receives();
  std::exception_ptr error_of_hopeless(const Transfer& receive) const;
  void end(Work& work, const std::exception_ptr& error);
  void end_all();

  const Topology& topology_;
  const std::function<void()> at_failure_;
  Failure failure_;
  TrafficCounters traffic_;
  // Runs and transfers that were submitted and have not ended: counted up by who submits them.
  std::atomic<size_t> in_flight_{0};
  bool draining_ = false;
  Lanes lanes_;
  Channels message_channels_;
  std::unique_ptr<Messages> messages_;
  Watch watch_;
  const std::function<void(Run&)> ended_;
  std::optional<Suspicion> suspicion_;
  std::exception_ptr ended_with_;
  struct {  // what is to hear of that error
    std::vector<std::shared_ptr<Work>> works;
    size_t next = 0;  // the first of them that has not
    std::list<std::shared_ptr<Transfer>> transfers;
    bool all = false;  // has heard
  } ending_;
};

}  // namespace hier
