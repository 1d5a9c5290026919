// The first error of a group: it wins, and stays. From any thread.
#pragma once

#include <atomic>
#include <exception>
#include <mutex>
#include <string>
#include <utility>

#include "transport/control.h"

namespace hier {

class Failure {
 public:
  // Does nothing if there was an error before. `tell` runs before anybody here can see the error:
  // whoever sees it may leave, and a rank that has left tells nothing. Takes no memory, so that an
  // error is not set by half.
  template <class Tell>
  void set(std::exception_ptr error, std::string text, Tell tell) {
    const std::lock_guard lock(mutex_);
    if (error_) return;
    error_ = std::move(error);
    text_ = std::move(text);
    tell();
    set_.store(true, std::memory_order_release);
  }
  bool is_set() const { return set_.load(std::memory_order_acquire); }
  std::exception_ptr error() const;  // null if there is none
  void check() const;                // throws AbortedError where there is one: for later calls

 private:
  mutable std::mutex mutex_;  // guards the writing of what follows, which then stays
  std::exception_ptr error_;
  std::string text_;
  std::atomic<bool> set_{false};  // release, after the two above; acquire
};

// An error as it travels between ranks. `rank` is the one that meets it first.
ControlFrame frame_of(const std::exception_ptr& error, int rank);
std::exception_ptr error_of(int sender, const ControlFrame& frame);

}  // namespace hier
