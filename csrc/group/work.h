// The handle of a collective that runs in the background.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <vector>

namespace hier {

// Called about every 50 ms by threads that wait inside a collective, without any lock held. Python
// installs a check for signals, which throws to end the wait. Set once, before the first group.
void set_interrupt_check(std::function<void()> check);
void check_interrupts();

class Work {
 public:
  // Waits until the collective has ended and rethrows its error. False if `seconds` passed first;
  // a negative value waits without limit of its own (the collective has a deadline).
  bool wait(double seconds = -1);
  bool done() const;
  std::exception_ptr error() const;
  // Calls back once, from the thread that ends the work, or at once if it has ended.
  void on_done(std::function<void()> callback);

  void finish(std::exception_ptr error);  // by the group

 private:
  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable ended_;
  bool done_ = false;
  std::exception_ptr error_;
  std::vector<std::function<void()>> callbacks_;
};

}  // namespace hier
