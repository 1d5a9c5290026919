// Monotonic time and deadlines.
#pragma once

#include <algorithm>
#include <chrono>

namespace hier {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

inline Clock::time_point after(double seconds, Clock::time_point begin = Clock::now()) {
  constexpr double kForever = 1e9;  // about 30 years: keeps the conversion below overflow
  return begin + std::chrono::duration_cast<Clock::duration>(Seconds(std::min(seconds, kForever)));
}

}  // namespace hier
