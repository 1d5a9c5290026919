// An elastic pool of threads for jobs that may block, on each other's results too.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.h"

namespace hier {

// A job that is pushed while no thread is idle gets a new one, so that blocked jobs hold up nobody.
// Threads that have been idle for some seconds end, but for the last one.
class Pool {
 public:
  using Job = std::function<void()>;  // throws nothing

  // Before something is begun that ends with a job: from now on there is a thread for it. Throws
  // SystemError where the system has none.
  void prepare() {
    const std::lock_guard lock(mutex_);
    if (threads_ > 0 || stopping_) return;
    try {
      add_thread();
    } catch (const std::system_error& error) {
      throw SystemError(error.code().value(),
                        "cannot start the thread that completes futures (raise ulimit -u, or the "
                        "container's limit of pids)");
    }
  }

  void push(Job job) {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    wake_.notify_one();
    if (jobs_.size() <= idle_ || stopping_ || threads_ == kMaxThreads) return;
    try {
      add_thread();
    } catch (const std::system_error&) {
      // The system has no more threads: one of ours takes the job later.
    }
  }

  // At exit: waits a moment for the jobs that run, drops the others. Threads are not joined: one
  // may be blocked for good.
  void stop() {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    wake_.notify_all();
    ended_.wait_for(lock, kExitPatience, [this] { return threads_ == 0; });
  }

 private:
  static constexpr size_t kMaxThreads = 256;
  static constexpr auto kIdle = std::chrono::seconds(5);
  static constexpr auto kExitPatience = std::chrono::seconds(2);

  void add_thread() {
    std::thread([this] { main(); }).detach();
    ++threads_;
  }

  // Tests make it slow, to find who does not wait for it.
  static void dawdle() {
    static const char* const milliseconds = std::getenv("HIER_TEST_SLOW_POOL_MS");
    if (milliseconds) std::this_thread::sleep_for(std::chrono::milliseconds(atoi(milliseconds)));
  }

  void main() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ++idle_;
      const auto called = [this] { return !jobs_.empty() || stopping_; };
      const bool woken = wake_.wait_for(lock, kIdle, called);
      --idle_;
      if (stopping_ || (!woken && threads_ > 1)) break;
      if (!woken) continue;
      Job job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      dawdle();
      job();
      job = nullptr;  // not under the lock: what it held may take other locks when it goes
      lock.lock();
    }
    --threads_;
    ended_.notify_all();
  }

  std::mutex mutex_;  // guards everything below
  std::condition_variable wake_, ended_;
  std::deque<Job> jobs_;
  size_t threads_ = 0, idle_ = 0;
  bool stopping_ = false;
};

}  // namespace hier
