// Waiting for a collective, in slices so that signals are seen.
#include "group/work.h"

#include <thread>

#include "base/clock.h"

namespace hier {

namespace {

std::function<void()>& interrupt_check() {
  static auto* check = new std::function<void()>;  // never destroyed: threads may outlive main
  return *check;
}

std::atomic<bool> exiting{false};  // release, after the thread's id; acquire
std::thread::id exiting_thread;

}  // namespace

void join_after_failure(const HostStaging& stage) noexcept {
  try {
    stage.join();
  } catch (...) {
    // The device has failed too: nothing is copied any more.
  }
}

void set_exiting() {
  exiting_thread = std::this_thread::get_id();
  exiting.store(true, std::memory_order_release);
}

bool exiting_elsewhere() {
  return exiting.load(std::memory_order_acquire) && exiting_thread != std::this_thread::get_id();
}

void set_interrupt_check(std::function<void()> check) { interrupt_check() = std::move(check); }

void check_interrupts() {
  if (interrupt_check()) interrupt_check()();
}

bool Work::wait(double seconds) {
  check_member();
  if (device_) {  // the stream waits, not the thread
    const auto failed = error();
    if (!failed) {
      device_->join();
      return true;
    }
    join_after_failure(*device_);
    std::rethrow_exception(failed);
  }
  const auto deadline = after(seconds < 0 ? 1e9 : seconds);
  constexpr auto kSlice = std::chrono::milliseconds(50);
  std::unique_lock lock(mutex_);
  while (!done_) {
    const auto now = Clock::now();
    if (now >= deadline) return false;
    ended_.wait_until(lock, std::min(deadline, now + kSlice));
    if (done_) break;
    lock.unlock();
    check_interrupts();
    check_member();  // a signal's handler may fork
    lock.lock();
  }
  if (error_) std::rethrow_exception(error_);
  return true;
}

std::exception_ptr Work::error() const { return done() ? error_ : nullptr; }

int Work::source() const {
  check_member();
  const std::lock_guard lock(mutex_);
  return source_;
}

int Work::tag() const {
  check_member();
  const std::lock_guard lock(mutex_);
  return tag_;
}

void Work::set_matched(int source, int tag) {
  const std::lock_guard lock(mutex_);
  source_ = source, tag_ = tag;
}

void Work::on_done(std::function<void()> callback) {
  {
    const std::lock_guard lock(mutex_);
    if (!done_) {
      callbacks_.push_back(std::move(callback));
      return;
    }
  }
  callback();
}

void Work::finish(std::exception_ptr error) {
  std::vector<std::function<void()>> callbacks;
  {
    const std::lock_guard lock(mutex_);
    if (done_) return;
    error_ = std::move(error);
    callbacks.swap(callbacks_);
    done_.store(true, std::memory_order_release);
  }
  ended_.notify_all();
  for (const auto& callback : callbacks) callback();
}

}  // namespace hier
