// Who moves what is in flight: threads, and their sleep, around a member that never blocks. One
// thread at a time drives: a blocking caller, if nobody drives when it comes, else the one worker.
// No exception leaves a thread.
#pragma once

#include <poll.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/fork.h"
#include "group/hand_over.h"
#include "group/member.h"
#include "group/work.h"

namespace hier {

class Driver {
 public:
  // What is passed by reference outlives this.
  Driver(Member& member, Doorbells& bells, int rank, int ranks_on_host);

  enum class Waited : uint8_t { yes, no };  // whether the caller blocks in the call
  // Queues it; true if the caller is to drive, for nobody does. Throws AbortedError and, where the
  // worker is needed and cannot be started, SystemError.
  bool submit(std::unique_ptr<Run> run, Waited waited);
  bool submit(std::shared_ptr<Transfer> transfer, Waited waited);
  void check_admission();  // whether a call that nobody waits in would be taken
  // After submit(): blocks until the work has ended, and throws its error.
  void finish(Work& work, bool driving);
  // After submit(): what can be moved at once is, if the caller is to drive; then it is left to the
  // worker.
  void leave(bool driving, bool try_first);
  // As work.wait, and drives meanwhile if nobody does: that spares a hand-off.
  bool wait(Work& work, double seconds);

  // Passes on what comes over the control links and others must hear, if nobody drives; the next
  // call hears it too. False if somebody drives. From any thread.
  bool pass_on();
  // Who is known to have left or died; nobody, while the group is driven.
  std::vector<int> gone_ranks();
  // Runs it in the thread that drives, before anything else moves; if nobody drives, later. False
  // if the group is closed. From any thread.
  bool at_next_turn(std::function<void()> change);
  void wake();            // the thread that drives
  void accept_pending();  // by that thread: what others have submitted
  void drain();  // waits until nothing is in flight; then the others are told that no more comes
  // Ends what is in flight, and the worker. False if that was done before.
  bool close();
  bool usable() const { return !closing_ && !member_.failure().is_set(); }
  void check_usable() const;  // throws AbortedError

 private:
  bool while_nobody_drives(const std::function<void()>& look);  // false: somebody does
  enum class Who { caller, waiter, worker };  // drives his own blocking call; any work; all
  void drive(const std::function<bool()>& ended, Who who);
  void take_turns(const std::function<bool()>& ended, Who who);
  void sleep(Who who);
  void look_at_signals(Who who, Clock::time_point now);
  void check_admission(Waited waited);
  void start_worker();
  bool admit();
  void stop_driving();
  void worker_main() noexcept;

  Member& member_;
  Doorbells& bells_;
  const int rank_, ranks_on_host_;
  const Origin origin_;
  Fd wake_;  // an eventfd: rouses the driving thread

  struct {  // of the thread that drives
    std::vector<pollfd> fds;
    unsigned turns = 0;  // that moved something
    Arrivals arrivals;   // that the last sleep has told
    Clock::time_point looked_at_signals{};
  } driving_;

  std::mutex mutex_;  // guards what follows
  // A thread drives, or the worker is about to: so whenever anything is in flight.
  bool driven_ = false;
  std::condition_variable driven_cv_;  // driven_ has become false
  HandOver hand_over_;
  RunNumbers numbers_;
  std::deque<std::unique_ptr<Run>> pending_;
  std::deque<std::shared_ptr<Transfer>> pending_transfers_;
  std::vector<std::function<void()>> pending_changes_;  // of channels
  bool draining_ = false;  // the member is to be told, behind what is pending
  std::thread worker_;

  std::atomic<bool> closing_{false};    // set under the mutex
  std::atomic<size_t> num_pending_{0};  // of these, for a look without the lock
};

}  // namespace hier
