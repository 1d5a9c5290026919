// How work passes from a caller, who does not wait for it, to the group's worker.
//
// Who started something often waits for it at once, and then drives it himself. Such calls come in
// bursts, and while one lasts the worker dozes: it looks by the clock, and nobody pays for waking
// it at every call. The longer the burst, the longer the doze, for each look takes a core from
// ranks that share it; what nobody waits for after a burst may begin that much later, once.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>

#include "base/clock.h"

namespace hier {

// Everything under one mutex of its owner's.
class HandOver {
 public:
  void give(Clock::time_point now) {
    given_ = true, given_at_ = now, ++count_;
    if (!dozing_) worker_.notify_one();
  }
  // True if the worker was to take it and has not yet: now the caller has.
  bool take_back(Clock::time_point now) {
    if (!std::exchange(given_, false)) return false;
    const bool at_once = now < given_at_ + kGrace;
    doze_ = at_once ? std::min(2 * doze_, kLongestDoze) : kGrace;
    return true;
  }
  void rouse() { worker_.notify_one(); }  // the worker, if it is not dozing

  // By the worker: waits until it is to take over; false: there is `nothing_more` to come.
  bool await(std::unique_lock<std::mutex>& lock, const std::function<bool()>& closing,
             const std::function<bool()>& nothing_more) {
    for (uint64_t seen = count_;;) {
      const auto now = Clock::now();
      if (given_ && (closing() || now >= given_at_ + kGrace)) {
        given_ = false;
        doze_ = kGrace;
        return true;
      }
      if (nothing_more()) return false;
      if (given_ || count_ != seen) {
        seen = count_;
        dozing_ = true;
        worker_.wait_until(lock, given_ ? given_at_ + kGrace : now + doze_);
        dozing_ = false;
      } else {
        worker_.wait(lock);
      }
    }
  }

 private:
  static constexpr std::chrono::microseconds kGrace{50};  // before the worker takes over
  static constexpr std::chrono::microseconds kLongestDoze{1600};

  bool given_ = false;
  Clock::time_point given_at_{};
  uint64_t count_ = 0;
  bool dozing_ = false;  // the worker will look for itself: nobody has to wake it
  std::chrono::microseconds doze_ = kGrace;  // until it looks
  std::condition_variable worker_;
};

}  // namespace hier
