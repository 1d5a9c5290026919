// How long a thread tries before it sleeps: spin while there are cores to spare, then yield, then
// give up. A wake-up across cores costs tens of microseconds, a spin a fraction of one; but with
// more ranks than cores a spinning rank only keeps the others from their work. Even with cores to
// spare spins are few: another program may have made two ranks share one (4000 spins: 1 KiB over
// TCP took 1600 us in place of 13, beside one busy process; 100 spins: 80 us). A rank that shares
// its core yields for as many times longer as there are ranks to a core: what it waits for takes
// that much longer, and a rank that sleeps meanwhile costs the one that it waits for a wake-up.
#pragma once

#include <sched.h>

#include <algorithm>
#include <chrono>

#include "base/clock.h"

namespace hier {

class SpinThenYield {
 public:
  explicit SpinThenYield(int local_size) {
    const int ranks_of_core = (local_size + cores() - 1) / cores();
    spins_ = ranks_of_core > 1 ? 1 : 100;
    yields_for_ = kYield * std::max(1, ranks_of_core);
  }

  void reset() { tries_ = 0; }

  // Waits a moment; true once it is time to sleep.
  bool exhausted() {
    if (++tries_ <= spins_) {
      pause();
      return false;
    }
    if (tries_ == spins_ + 1) yield_until_ = Clock::now() + yields_for_;
    ::sched_yield();
    if (Clock::now() < yield_until_) return false;
    tries_ = 0;
    return true;
  }

 private:
  // Lets the core's other thread, or the memory, go first.
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");  // "yield" does nothing on cores with one thread
#endif
  }

  static constexpr auto kYield = std::chrono::microseconds(50);

  static int cores() {
    static const int allowed = [] {
      cpu_set_t set;
      return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    }();
    return allowed;
  }

  int spins_ = 1, tries_ = 0;
  std::chrono::microseconds yields_for_ = kYield;
  Clock::time_point yield_until_;
};

}  // namespace hier
