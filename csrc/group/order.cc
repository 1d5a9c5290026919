// Which calls in flight touch which memory.
#include "group/order.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "base/error.h"
#include "group/group.h"

namespace hier {

namespace {

std::vector<ByteRange> ranges_of(const Call& call) {
  if (call.collective == Collective::barrier) return {kEverything};
  const size_t element = size_of(call.dtype);
  std::vector<ByteRange> ranges{ByteRange::of(call.data, call.count * element, true)};
  if (call.input) ranges.push_back(ByteRange::of(call.input, call.input_count * element, false));
  return ranges;
}

}  // namespace

void MemoryUse::set_deliver(std::function<void()> job) {
  const std::lock_guard lock(mutex_);
  if (!delivered.load(std::memory_order_relaxed)) deliver_ = std::move(job);
}

void MemoryUse::deliver() {
  std::function<void()> job;
  {
    const std::lock_guard lock(mutex_);
    job = deliver_;
  }
  if (job) job();
}

void MemoryUse::set_delivered() {
  std::function<void()> job;  // goes without the lock
  const std::lock_guard lock(mutex_);
  delivered.store(true, std::memory_order_release);
  job.swap(deliver_);
}

bool MemoryUse::may_begin() {
  while (!earlier.empty()) {
    MemoryUse& last = *earlier.back();
    if (!last.ended()) return false;
    if (!last.over()) last.deliver();
    earlier.pop_back();
  }
  if (begin) std::exchange(begin, nullptr)();
  return true;
}

std::vector<std::shared_ptr<MemoryUse>> Group::uses_of(std::span<const ByteRange> ranges) {
  check_usable();
  std::vector<std::shared_ptr<MemoryUse>> found;
  if (num_in_use_.load(std::memory_order_acquire) == 0) return found;
  const std::lock_guard lock(mutex_);
  forget_over();
  std::vector<ByteRange> open(ranges.begin(), ranges.end());
  for (auto entry = in_use_.rbegin(); entry != in_use_.rend(); ++entry) {
    const auto& [range, use] = *entry;
    const auto conflicts = [&](const ByteRange& own) { return own.conflicts(range); };
    if (std::none_of(open.begin(), open.end(), conflicts) || use->over()) continue;
    if (found.empty() || found.back() != use) found.push_back(use);
    // What writes all of a range has waited for all that was before it there.
    std::erase_if(open, [&](const ByteRange& own) { return range.written && own.within(range); });
  }
  return found;
}

// mutex_ is held. Calls end in about the order in which they were made.
void Group::forget_over() {
  while (!in_use_.empty() && in_use_.front().second->over()) in_use_.pop_front();
  num_in_use_.store(in_use_.size(), std::memory_order_release);
}

void Group::publish(const std::shared_ptr<MemoryUse>& use, std::span<const ByteRange> ranges) {
  const std::lock_guard lock(mutex_);
  forget_over();
  if (error_ || closing_) return in_use_.clear();
  if (!use->over()) {
    const size_t before = in_use_.size();
    for (const ByteRange& range : ranges) {
      if (range.begin != 0 && range.begin < range.end) in_use_.emplace_back(range, use);
    }
    // A barrier is in nobody's way, and comes after calls without elements too.
    if (in_use_.size() == before) in_use_.emplace_back(kNowhere, use);
  }
  num_in_use_.store(in_use_.size(), std::memory_order_release);
}

std::shared_ptr<MemoryUse> Group::claim(const Call& call) {
  auto use = std::make_shared<MemoryUse>();
  use->earlier = uses_of(ranges_of(call));
  return use;
}

void Group::publish(const std::shared_ptr<MemoryUse>& use, const Call& call) {
  publish(use, ranges_of(call));
}

// All that is in flight has a deadline of its own, so this ends.
void Group::settle(std::span<const ByteRange> ranges) {
  constexpr auto kSlice = std::chrono::microseconds(100);
  for (const auto& use : uses_of(ranges)) {
    while (!use->ended()) {
      check_usable();
      check_interrupts();
      std::this_thread::sleep_for(kSlice);
    }
    if (!use->over()) use->deliver();
  }
}

}  // namespace hier
