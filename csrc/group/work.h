// The handle of a collective that runs in the background.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/fork.h"
#include "device/host_staging.h"

namespace hier {

// Called about every 50 ms by threads that wait inside a collective, without any lock held. Python
// installs a check for signals, which throws to end the wait. Set once, before the first group.
void set_interrupt_check(std::function<void()> check);
void check_interrupts();

// The process is about to exit: set by the thread that ends it, before it closes groups.
void set_exiting();
bool exiting_elsewhere();  // and this is another thread

// Orders the caller's stream behind copies of the caller's memory that may be under way still, so
// that whoever gets that memory next gets it alone.
void join_after_failure(const HostStaging& stage) noexcept;

class Work {
 public:
  void check_member() const { origin_.check(); }  // throws UsageError in a forked child
  // Waits until the collective has ended and rethrows its error. False if `seconds` passed first;
  // a negative value waits without limit of its own (the collective has a deadline). On device
  // memory it is the caller's stream that waits.
  bool wait(double seconds = -1);
  bool done() const { return done_.load(std::memory_order_acquire); }
  std::exception_ptr error() const;
  // Calls back once, from the thread that ends the work, or at once if it has ended.
  void on_done(std::function<void()> callback);

  void finish(std::exception_ptr error);  // by the group

  // Of a call on device memory, else null: the work may end before the result is there.
  const std::shared_ptr<const HostStaging>& device() const { return device_; }
  void set_device(std::shared_ptr<const HostStaging> device) {  // by the group, at the start
    device_ = std::move(device);
  }

  // Of a receive that has ended: whose message it was, and its tag.
  int source() const;
  int tag() const;
  void set_matched(int source, int tag);  // by the group, before finish

 private:
  const Origin origin_;
  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable ended_;
  std::atomic<bool> done_{false};  // set under the mutex; the rest is constant then
  std::exception_ptr error_;
  int source_ = -1, tag_ = 0;
  std::vector<std::function<void()>> callbacks_;
  std::shared_ptr<const HostStaging> device_;  // constant once the work is handed out
};

inline std::shared_ptr<Work> make_work() { return make_kept_from_children<Work>(); }

}  // namespace hier
