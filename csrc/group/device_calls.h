// Calls on device memory: what of the buffer goes to the host and back, and when. Either the whole
// buffer does, or the devices of a node sum among themselves and shards of it do.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "device/host_staging.h"
#include "device/local_stage.h"
#include "device/shared_memory.h"
#include "group/config.h"
#include "group/planner.h"
#include "group/run.h"
#include "group/topology.h"

namespace hier {

class DeviceCalls {
 public:
  // What is passed by reference outlives this.
  DeviceCalls(const GroupConfig& config, const Topology& topology, Planner& planner)
      : config_(config), topology_(topology), planner_(planner) {}

  // The run of a call, whose part on the streams has been enqueued. Throws UsageError, and
  // CudaError, after which the other ranks must not wait for this one.
  std::unique_ptr<Run> make_run(const Call& call, Clock::time_point now, double timeout);

  // The devices of this node's ranks work together from now on. Every rank calls it at the same
  // place among its collectives; calls on other devices go on through the host.
  void set_stage(std::shared_ptr<DeviceLocalStage> stage) { stage_ = std::move(stage); }
  // Once the group has failed, a word of this memory is raised, by which kernels stop to wait.
  void raise_on_failure(const std::shared_ptr<SharedDeviceMemory>& memory, size_t offset);
  // Up to here device memory is summed by the CPU. All ranks set it between the same calls.
  size_t host_path_bytes() const { return host_path_bytes_; }
  void set_host_path_bytes(size_t bytes) { host_path_bytes_ = bytes; }

  // Lets go of everything that streams wait for: the group has failed.
  void let_go();
  void close() { stage_.reset(); }

 private:
  std::unique_ptr<Run> make_staged(const Call& call, Clock::time_point now, double timeout);
  void enqueue_staged(Run& run, const Call& on_device);

  // device_local.cc
  bool works_between_devices(const Call& call) const;
  std::unique_ptr<Run> make_between_devices(const Call& call, Clock::time_point now,
                                            double timeout);
  void enqueue_between_devices(Run& run, const Call& on_device, const Plan& devices);

  const GroupConfig& config_;
  const Topology& topology_;
  Planner& planner_;
  const std::shared_ptr<PinnedPool> pinned_ = std::make_shared<PinnedPool>();
  std::shared_ptr<DeviceLocalStage> stage_;  // set once, before calls that use it; null: none
  std::mutex mutex_;                         // guards raised_on_failure_
  std::vector<std::pair<std::weak_ptr<SharedDeviceMemory>, size_t>> raised_on_failure_;
  std::atomic<size_t> host_path_bytes_{256 << 10};  // stands alone
};

}  // namespace hier
