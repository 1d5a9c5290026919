// Passing device memory through pinned memory.
#include "device/host_staging.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace hier {

namespace {

constexpr size_t kSmallest = 64 << 10, kHuge = 2 << 20;  // bytes of a block

size_t block_bytes(size_t bytes) {
  size_t size = kSmallest;
  while (size < bytes && size < kHuge) size *= 2;
  return std::max(size, (bytes + kHuge - 1) / kHuge * kHuge);
}

}  // namespace

PinnedPool::~PinnedPool() {
  for (const Block& block : blocks_) {
    try {
      block.runtime->synchronize(block.finished);  // abandoned or complete, so it ends
    } catch (...) {
      // A device that has failed: nothing runs on it any more.
    }
    block.runtime->destroy_event(block.finished);
    block.runtime->free_pinned(block.memory);
  }
}

PinnedPool::Block PinnedPool::take(DeviceRuntime* runtime, int device, size_t bytes) {
  const size_t size = block_bytes(bytes);
  {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(blocks_.begin(), blocks_.end(), [&](const Block& block) {
      return block.runtime == runtime && block.device == device && block.bytes == size &&
             runtime->finished(block.finished);
    });
    if (found != blocks_.end()) {
      const Block block = *found;
      *found = blocks_.back();
      blocks_.pop_back();
      block.flags().arrived.store(0, std::memory_order_relaxed);
      block.flags().done.store(0, std::memory_order_relaxed);
      block.flags().ended.store(0, std::memory_order_relaxed);
      return block;
    }
  }
  const DeviceRuntime::Event event = runtime->create_event(device);
  try {
    return {runtime, device, runtime->allocate_pinned(size + sizeof(Block::Flags)), size, event};
  } catch (...) {
    runtime->destroy_event(event);
    throw;
  }
}

void PinnedPool::give_back(const Block& block) {
  const std::lock_guard lock(mutex_);
  blocks_.push_back(block);
}

HostStaging::HostStaging(std::shared_ptr<PinnedPool> pool, DevicePlace place, size_t bytes)
    : pool_(std::move(pool)),
      place_(place),
      block_(pool_->take(place.runtime, place.device, bytes)) {}

HostStaging::~HostStaging() {
  abandon();
  pool_->give_back(block_);
}

void HostStaging::begin(bool behind_results) {
  DeviceRuntime& runtime = *place_.runtime;
  if (behind_results) {  // by an event of its own: `finished` follows the caller's stream next
    const DeviceRuntime::Event results = runtime.create_event(place_.device);
    runtime.record(results, place_.out);
    runtime.wait(place_.in, results);
    runtime.destroy_event(results);
  }
  runtime.record(block_.finished, place_.caller);  // as the event of what the call comes after
  runtime.wait(place_.in, block_.finished);
  runtime.wait(place_.out, block_.finished);
}

void HostStaging::fetch(const std::vector<StagedCopy>& parts, uint32_t num_pieces) {
  DeviceRuntime& runtime = *place_.runtime;
  for (const StagedCopy& p : parts) runtime.copy(p.host, p.device, p.bytes, place_.in);
  runtime.write_flag(&block_.flags().arrived, num_fetched_ += num_pieces, place_.in);
}

void HostStaging::fetched_all() {
  DeviceRuntime& runtime = *place_.runtime;
  if (runtime.waits_are_apart()) return;
  runtime.record(block_.finished, place_.in);
  runtime.wait(place_.out, block_.finished);
}

void HostStaging::put_back(const std::vector<StagedCopy>& parts, uint32_t num_pieces) {
  DeviceRuntime& runtime = *place_.runtime;
  out_.push_back({num_put_back() + num_pieces, parts});
  auto& flags = block_.flags();
  runtime.wait_flag(&flags.done, num_put_back(), place_.out);
  // True already but after abandon(): a piece must not go back while it still comes in.
  runtime.wait_flag(&flags.arrived, num_put_back(), place_.out);
  for (const StagedCopy& p : parts) runtime.copy(p.device, p.host, p.bytes, place_.out);
}

void HostStaging::pass() {
  out_.push_back({num_put_back() + 1, {}});
  place_.runtime->wait_flag(&block_.flags().arrived, num_put_back(), place_.out);
}

void HostStaging::end() {
  place_.runtime->write_flag(&block_.flags().ended, 1, place_.out);
  place_.runtime->record(block_.finished, place_.out);
}

void HostStaging::join() const {
  const CurrentDevice current(*place_.runtime, place_.device);
  place_.runtime->wait(place_.caller, block_.finished);
}

void HostStaging::abandon() noexcept {
  auto& flags = block_.flags();
  const uint32_t done = flags.done.load(std::memory_order_relaxed);
  if (done >= num_put_back()) return;
  for (const auto& [end, parts] : out_) {
    if (end <= done) continue;
    if (!has_arrived(end - 1)) break;
    for (const StagedCopy& p : parts) std::memset(p.host, 0xff, p.bytes);  // NaN of every float
  }
  flags.done.store(std::numeric_limits<int32_t>::max(), std::memory_order_release);
}

}  // namespace hier
