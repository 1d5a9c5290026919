// The floating-point environment of the thread that reduces. Ranks compute one result each on their
// own (one-shot), and must get the same bits, whatever their threads are set to: PyTorch's
// set_flush_denormal, -ffast-math's start-up code, another rounding mode, traps.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace hier {

// Round to nearest even, keep subnormal numbers, no traps: as long as this lives, in this thread.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() : before_(read()) {
    if (!is_default()) write(kDefault);
  }
  ~DefaultFloatingPoint() {
    if (!is_default()) write(before_);
  }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
#if defined(__x86_64__)
  using Register = uint32_t;  // MXCSR: its low six bits tell what has happened
  static constexpr Register kFlags = 0x3f, kDefault = 0x1f80;
  static Register read() { return _mm_getcsr(); }
  static void write(Register value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Register = uint64_t;  // FPCR
  static constexpr Register kFlags = 0, kDefault = 0;
  static Register read() {
    Register value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void write(Register value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
#else
#error "how are the rounding mode and the handling of subnormal numbers set on this processor?"
#endif

  bool is_default() const { return (before_ & ~kFlags) == kDefault; }

  const Register before_;
};

}  // namespace hier
