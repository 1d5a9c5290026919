// An elastic pool of threads for jobs that may block, on each other's results too.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace hier {

// A job that is pushed while no thread is idle gets a new one, so that blocked jobs hold up nobody.
// Threads that have been idle for some seconds end.
class Pool {
 public:
  using Job = std::function<void()>;  // throws nothing

  void push(Job job) {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    if (jobs_.size() <= idle_ || stopping_ || threads_ == kMaxThreads) {
      wake_.notify_one();
      return;
    }
    try {
      std::thread([this] { main(); }).detach();
      ++threads_;
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

  void main() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ++idle_;
      wake_.wait_for(lock, kIdle, [this] { return !jobs_.empty() || stopping_; });
      --idle_;
      if (jobs_.empty() || stopping_) break;
      Job job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
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
