// A thread and who waits for it, either of which may go first.
#include "nccl/bounded_call.h"

#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>

#include "base/clock.h"
#include "base/error.h"

namespace hier::nccl {

namespace {

constexpr auto kPause = std::chrono::milliseconds(10);  // between calls of on_wake

// Of both.
struct Shared {
  std::mutex mutex;  // guards what follows
  std::condition_variable changed;
  bool left = false;  // nobody waits any more
  std::optional<Result> result;
  std::exception_ptr error;

  bool succeeded() const { return result == Result::success && !error; }
};

void run(Shared& shared, const std::function<Result()>& call, const std::function<void()>& undo) {
  Result result = Result::internal_error;
  std::exception_ptr error;
  try {
    result = call();
  } catch (...) {
    error = std::current_exception();
  }
  std::unique_lock lock(shared.mutex);
  shared.result = result;
  shared.error = error;
  const bool late = shared.left && shared.succeeded();
  shared.changed.notify_all();
  lock.unlock();
  if (late && undo) undo();
}

// The one who waits leaves: whatever comes of the call is undone, by one of the two.
void leave(Shared& shared, const std::function<void()>& undo) {
  std::unique_lock lock(shared.mutex);
  shared.left = true;
  const bool there = shared.succeeded();
  lock.unlock();
  if (there && undo) undo();
}

}  // namespace

Result call_bounded(const BoundedCall& bounded) {
  const auto shared = std::make_shared<Shared>();
  try {
    std::thread([shared, call = bounded.call, undo = bounded.undo] {
      run(*shared, call, undo);
    }).detach();
  } catch (const std::system_error& error) {
    throw SystemError(error.code().value(), bounded.what + ": starting a thread");
  }
  const Clock::time_point deadline = after(bounded.timeout);
  for (;;) {
    {
      std::unique_lock lock(shared->mutex);
      shared->changed.wait_for(lock, kPause, [&] { return shared->result.has_value(); });
      if (shared->error) std::rethrow_exception(shared->error);
      if (shared->result) return *shared->result;
    }
    try {
      if (bounded.on_wake) bounded.on_wake();
      if (Clock::now() > deadline) {
        throw Timeout(bounded.what + " took longer than " + std::to_string(bounded.timeout) +
                      " s: another rank of this node has not come, or hangs");
      }
    } catch (...) {
      leave(*shared, bounded.undo);
      throw;
    }
  }
}

}  // namespace hier::nccl
