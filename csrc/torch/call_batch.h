// Several calls of the core as one: a coalesced collective, or the usual case of a single one.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "group/group.h"

namespace hier {

class CallBatch {
 public:
  template <class T>
  void add(T call) {
    calls_.emplace_back(std::in_place_type<T>, std::move(call));
  }

  // What the memory of all calls is used for, as one: null for a blocking call that nobody
  // precedes.
  void set_use(std::shared_ptr<MemoryUse> use) {
    use->runs.store(calls_.size(), std::memory_order_relaxed);  // nobody else has it yet
    for (auto& call : calls_) {
      if (auto* collective = std::get_if<Call>(&call)) collective->use = use;
    }
  }

  // Blocks, in the caller's thread; throws the first error.
  void run(Group& group, double timeout) {
    for (auto& call : calls_) {
      std::visit(
          [&](auto& one) {
            one.timeout = timeout;
            group.run(one);
          },
          call);
    }
  }

  // Returns at once. `ended` is called exactly once, by whichever thread ends the last call, unless
  // nothing could be started; then this throws. It may throw after some have started, too.
  void start(const std::shared_ptr<Group>& group, double timeout, std::function<void()> ended) {
    group_ = group;
    std::exception_ptr error;
    try {
      for (auto& call : calls_) {
        works_.push_back(std::visit(
            [&](auto& one) {
              one.timeout = timeout;
              return group->start(one);
            },
            call));
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
    const auto group = group_.lock();  // null: it has ended, and every work with it
    for (const auto& work : works_) {
      const double left = seconds < 0 ? -1 : std::max(0.0, Seconds(until - Clock::now()).count());
      try {
        if (!(group ? group->wait(*work, left) : work->wait(left))) return false;
      } catch (...) {
        if (!work->error()) throw;
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

  // Whose message the first call has received, once it is done.
  int source() const { return works_.empty() ? -1 : works_.front()->source(); }

 private:
  void one_ended() {
    // acq_rel: whoever is last sees what all the others have written into the buffers. It may
    // destroy this object.
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) std::exchange(ended_, nullptr)();
  }

  std::vector<std::variant<Call, Message>> calls_;
  std::weak_ptr<Group> group_;                // weak: a work may outlive its group
  std::vector<std::shared_ptr<Work>> works_;  // set by start, then constant
  std::atomic<size_t> running_{0};
  std::function<void()> ended_;
};

}  // namespace hier
