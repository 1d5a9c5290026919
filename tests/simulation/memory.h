// Allocations that fail where a scenario says so.
#pragma once

#include <cstdint>

namespace hier::simulation {

constexpr int64_t kPlenty = -1;
extern int64_t allocations_left;  // before one fails; kPlenty: none does

// For the time that a rank has the thread: its count goes on the next time.
class Rationed {
 public:
  explicit Rationed(int64_t& left) : left_(left) { allocations_left = left; }
  Rationed(const Rationed&) = delete;
  Rationed& operator=(const Rationed&) = delete;
  ~Rationed() {
    left_ = allocations_left;
    allocations_left = kPlenty;
  }

 private:
  int64_t& left_;
};

// What a kernel allocates is no rank's.
class Unrationed {
 public:
  Unrationed() { allocations_left = kPlenty; }
  Unrationed(const Unrationed&) = delete;
  Unrationed& operator=(const Unrationed&) = delete;
  ~Unrationed() { allocations_left = before_; }

 private:
  const int64_t before_ = allocations_left;
};

}  // namespace hier::simulation
