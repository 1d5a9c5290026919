// How long a thread tries before it sleeps: spin while there are cores to spare, then yield, then
// give up. A wake-up across cores costs tens of microseconds, a spin a fraction of one; but with
// more ranks than cores a spinning rank only keeps the others from their work. Even with cores to
// spare spins are few: another program may have made two ranks share one (4000 spins: 1 KiB over
// TCP took 1600 us in place of 13, beside one busy process; 100 spins: 80 us).
#pragma once

#include <sched.h>

#include <thread>

#include "base/clock.h"

namespace hier {

class Patience {
 public:
  explicit Patience(int local_size) : spins_(crowded(local_size) ? 1 : 100) {}

  void reset() { tries_ = 0; }

  // Waits a moment; true once it is time to sleep.
  bool exhausted() {
    if (++tries_ <= spins_) {
      __builtin_ia32_pause();
      return false;
    }
    if (tries_ == spins_ + 1) yield_until_ = Clock::now() + kYield;
    ::sched_yield();
    if (Clock::now() < yield_until_) return false;
    tries_ = 0;
    return true;
  }

 private:
  static constexpr auto kYield = std::chrono::microseconds(50);

  static bool crowded(int local_size) {
    static const int cores = [] {
      cpu_set_t set;
      return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    }();
    return local_size > cores;
  }

  int spins_, tries_ = 0;
  Clock::time_point yield_until_;
};

}  // namespace hier
