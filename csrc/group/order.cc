// Which calls in flight touch which memory.
#include "group/order.h"

#include <algorithm>
#include <utility>

namespace hier {

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

std::vector<std::shared_ptr<MemoryUse>> MemoryOrder::uses_of(std::span<const ByteRange> ranges) {
  std::vector<std::shared_ptr<MemoryUse>> found;
  if (empty()) return found;
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
void MemoryOrder::forget_over() {
  while (!in_use_.empty() && in_use_.front().second->over()) in_use_.pop_front();
  size_.store(in_use_.size(), std::memory_order_release);
}

void MemoryOrder::publish(const std::shared_ptr<MemoryUse>& use,
                          std::span<const ByteRange> ranges) {
  const std::lock_guard lock(mutex_);
  forget_over();
  if (!use->over()) {
    const size_t before = in_use_.size();
    for (const ByteRange& range : ranges) {
      if (range.begin != 0 && range.begin < range.end) in_use_.emplace_back(range, use);
    }
    // A barrier is in nobody's way, and comes after calls without elements too.
    if (in_use_.size() == before) in_use_.emplace_back(kNowhere, use);
  }
  size_.store(in_use_.size(), std::memory_order_release);
}

void MemoryOrder::clear() {
  const std::lock_guard lock(mutex_);
  in_use_.clear();
  size_.store(0, std::memory_order_release);
}

}  // namespace hier
