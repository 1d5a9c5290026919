// Several calls of the core as one: a coalesced collective, or the usual case of a single one.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "group/group.h"

namespace hier {

class Batch {
 public:
  void add(Call call) { calls_.push_back(std::move(call)); }

  // Blocks, in the caller's thread; throws the first error.
  void run(Group& group, double timeout) {
    for (Call& call : calls_) {
      call.timeout = timeout;
      group.run(call);
    }
  }

  // Returns at once. `ended` is called exactly once, by whichever thread ends the last call, unless
  // nothing could be started; then this throws. It may throw after some have started, too.
  void start(Group& group, double timeout, std::function<void()> ended) {
    std::exception_ptr error;
    try {
      for (Call& call : calls_) {
        call.timeout = timeout;
        works_.push_back(group.start(call));
      }
    } catch (...) {
      if (works_.empty()) throw;
      error = std::current_exception();
    }
    ended_ = std::move(ended);
    running_.store(works_.size() + 1, std::memory_order_relaxed);  // on_done's lock publishes it
    for (const auto& work : works_) work->on_done([this] { one_ended(); });
    one_ended();  // the loop itself
    if (error) std::rethrow_exception(error);
  }

  // Waits for all; false if `seconds` (negative: no limit) passed first. Throws only what a signal
  // handler throws: the calls' own errors are told by error().
  bool wait(double seconds) {
    const auto until = after(seconds);
    for (const auto& work : works_) {
      const double left = seconds < 0 ? -1 : Seconds(until - Clock::now()).count();
      try {
        if (!work->wait(seconds < 0 ? -1 : std::max(0.0, left))) return false;
      } catch (...) {
        if (!work->done()) throw;
      }
    }
    return true;
  }

  bool done() const {
    return std::all_of(works_.begin(), works_.end(), [](const auto& work) { return work->done(); });
  }

  // The first error, once all are done.
  std::exception_ptr error() const {
    for (const auto& work : works_) {
      if (auto error = work->error()) return error;
    }
    return nullptr;
  }

 private:
  void one_ended() {
    // acq_rel: whoever is last sees what all the others have written into the buffers. It may
    // destroy this object.
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) std::exchange(ended_, nullptr)();
  }

  std::vector<Call> calls_;
  std::vector<std::shared_ptr<Work>> works_;  // set by start, then constant
  std::atomic<size_t> running_{0};
  std::function<void()> ended_;
};

}  // namespace hier
