// A call into NCCL that may never return, since it waits for other ranks.
#pragma once

#include <functional>
#include <string>

#include "nccl/library.h"

namespace hier::nccl {

struct BoundedCall {
  std::string what;      // for errors: "joining ..."
  double timeout = 300;  // seconds
  // Called again and again by the thread that waits, without a lock. What it throws ends the wait.
  std::function<void()> on_wake = {};
  std::function<Result()> call;
  std::function<void()> undo = {};  // follows a success that nobody waits for any more
};

// Makes the call in a thread of its own, and waits for it. Throws what the call throws, SystemError
// where there is no thread to be had, Timeout, or what on_wake throws. After these two the thread
// goes on by itself, so the call must own, or outlive, all that it uses.
Result call_bounded(const BoundedCall& bounded);

}  // namespace hier::nccl
