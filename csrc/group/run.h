// One collective of one rank, from its call to its end; and how runs are numbered.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "device/host_staging.h"
#include "device/local_stage.h"
#include "engine/header.h"
#include "group/call.h"
#include "group/execution.h"
#include "group/work.h"

namespace hier {

struct Run {
  Call call;
  RunHeader header;
  uint64_t digest = 0;  // of this header and of all earlier ones
  Plan plan;
  Clock::time_point begun, deadline;
  bool told_status = false;
  std::shared_ptr<HostStaging> device;  // null if the buffer is in host memory
  // Of a call that the node's devices work on together: what it waits for.
  struct BetweenDevices {
    std::shared_ptr<DeviceLocalStage> stage;
    DeviceLocalStage::Ticket ticket;
    uint64_t hash;           // of the header
    std::vector<int> ranks;  // of the node
  };
  std::optional<BetweenDevices> between_devices;
  // In place of the caller's memory, where that is not aligned to its elements.
  std::unique_ptr<std::max_align_t[]> aligned;
  std::optional<Execution> execution;
  std::shared_ptr<Work> work = make_work();

  Run() = default;
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
  ~Run() {
    if (device) device->abandon();            // does nothing where the run has ended well
    if (call.use) call.use->earlier.clear();  // likewise; else a long chain would end in one go
  }
};

// Numbers follow the order of the calls.
class RunNumbers {
 public:
  uint32_t next() const { return next_; }
  void number(Run& run) noexcept {
    run.header.run = next_++;
    run.header.history = static_cast<uint32_t>(history_);
    run.digest = history_ = run.header.hash(history_);
  }

 private:
  uint32_t next_ = 0;
  uint64_t history_ = 0;  // a hash of all headers so far
};

}  // namespace hier
