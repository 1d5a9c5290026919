// Everything random in a life comes from here: a seed gives the same life again, on any machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace hier::simulation {

// SplitMix64 (Steele, Lea and Flood 2014): one addition and two multiplications for 64 bits.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
  }
  size_t between(size_t lo, size_t hi) { return lo + next() % (hi - lo + 1); }
  // True in one of so many cases.
  bool one_in(size_t cases) { return next() % cases == 0; }
  template <class T>
  const T& of(const std::vector<T>& choices) {
    return choices[between(0, choices.size() - 1)];
  }

 private:
  uint64_t state_;
};

}  // namespace hier::simulation
