// The order of calls that touch the same memory: the later one begins when the earlier has ended.
//
// A call waits for earlier calls of its group only, and a lane takes its runs in the order of the
// calls. So the earliest call that is under way anywhere waits for none, and no circle can form,
// even where ranks see different overlaps.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

namespace hier {

// Bytes that a call reads, or writes as well.
struct ByteRange {
  uintptr_t begin = 0, end = 0;
  bool written = false;

  static ByteRange of(const void* data, size_t bytes, bool written) {
    const auto begin = reinterpret_cast<uintptr_t>(data);
    return {begin, begin + bytes, written};
  }
  bool overlaps(const ByteRange& other) const { return begin < other.end && other.begin < end; }
  bool within(const ByteRange& other) const { return other.begin <= begin && end <= other.end; }
  bool conflicts(const ByteRange& other) const {
    return overlaps(other) && (written || other.written);
  }
};

// What a barrier comes after; and what a call occupies that touches no memory. Nobody's memory is
// at address 0.
inline constexpr ByteRange kEverything{0, UINTPTR_MAX, true};
inline constexpr ByteRange kNowhere{0, 1, false};

// A user's call, of one run or several, as the calls after it see it.
struct MemoryUse {
  // Set before the first run is submitted; then the driving thread's.
  std::vector<std::shared_ptr<MemoryUse>> earlier;  // what has to end first
  std::function<void()> begin;  // behind those, once: for example copies the user's memory

  std::atomic<size_t> runs{1};  // that have not ended; release: with what they have written
  // Likewise: the result is in the user's memory. False from the start where it has to be copied.
  std::atomic<bool> delivered{true};

  bool ended() const { return runs.load(std::memory_order_acquire) == 0; }
  bool over() const { return ended() && delivered.load(std::memory_order_acquire); }
  void end_run() { runs.fetch_sub(1, std::memory_order_release); }

  // Where `delivered` is false: by whom `deliver` has it copied, once the runs have ended, if he
  // has not yet. He lets go of it when he says so.
  void set_deliver(std::function<void()> job);
  void deliver();
  void set_delivered();

  // By the driving thread: whether the runs may begin. Throws what `begin` and `deliver` throw.
  bool may_begin();
  // By the caller of a call on device memory, whose streams wait in place of the driving thread:
  // true if they have to.
  bool leave_to_device() { return !std::exchange(earlier, {}).empty(); }

 private:
  std::mutex mutex_;  // guards deliver_
  std::function<void()> deliver_;
};

// Which calls of a group touch which memory. From any thread.
class MemoryOrder {
 public:
  bool empty() const { return size_.load(std::memory_order_acquire) == 0; }
  // Earlier calls, not over, that conflict with these ranges: a new call puts them into its `use`,
  // and is known to later ones once it is published, after its last run has been started. (A
  // blocking call need not be: it is over when it returns.)
  std::vector<std::shared_ptr<MemoryUse>> uses_of(std::span<const ByteRange> ranges);
  void publish(const std::shared_ptr<MemoryUse>& use, std::span<const ByteRange> ranges);
  void clear();

 private:
  void forget_over();

  std::mutex mutex_;                                                     // guards in_use_
  std::deque<std::pair<ByteRange, std::shared_ptr<MemoryUse>>> in_use_;  // the oldest first
  std::atomic<size_t> size_{0};  // of in_use_, for a look without the lock
};

}  // namespace hier
