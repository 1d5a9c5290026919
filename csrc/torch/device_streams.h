// GPU tensors of the backend: the pair of streams that a backend has on each device, and torch's
// own streams beside them. Devices are met through c10's interfaces alone: no CUDA header is
// needed.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fork.h"
#include "device/host_staging.h"
#include "group/group.h"

namespace hier::torch_backend {

// The device runtime of this process. Throws what Python raises where there is none.
inline DeviceRuntime& device_runtime() {
  const py::gil_scoped_acquire gil;
  const auto capsule = py::module_::import("allreduce.communicator.device_streams")
                           .attr("capsule")()
                           .cast<py::capsule>();
  if (std::string_view(capsule.name()) != "hier::DeviceRuntime") {
    throw UsageError("the capsule holds no hier::DeviceRuntime");
  }
  return *capsule.get_pointer<DeviceRuntime>();
}

// The handle under which the runtime knows a stream of torch's. c10 tells it from 2.13 on, as far
// as we know; before that torch.cuda does.
inline DeviceRuntime::Stream handle_of(const c10::Stream& stream) {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
  return stream.native_handle();
#else
  const py::gil_scoped_acquire gil;
  const auto handle =
      py::module_::import("allreduce.torch.backend.process_group")
          .attr("stream_handle")(stream.id(), static_cast<int>(stream.device_index()),
                                 static_cast<int>(stream.device_type()));
  return reinterpret_cast<DeviceRuntime::Stream>(handle.cast<uintptr_t>());
#endif
}

// A device as a backend uses it.
struct DeviceStreams {
  static constexpr int kHigh = -1;  // priority: a reduction must not queue behind backprop's blocks

  c10::Device device;
  DeviceRuntime& runtime;
  c10::impl::VirtualGuardImpl torch;
  c10::Stream in, out;  // of torch's pool: torch itself enqueues copies on `out`

  DeviceStreams(c10::Device device, DeviceRuntime& runtime)
      : device(device),
        runtime(runtime),
        torch(device.type()),
        in(torch.getNewStream(device, kHigh)),
        out(torch.getNewStream(device, kHigh)) {}

  // What is enqueued on `second` from now on comes after what is on `first` now.
  void order(const c10::Stream& first, const c10::Stream& second) const {
    c10::Event event(device.type());
    event.record(first);
    event.block(second);
  }

  c10::Stream current() const { return torch.getStream(device); }

  DevicePlace place() const {
    return {&runtime, device.index(), handle_of(current()), handle_of(in), handle_of(out)};
  }

  // The caching allocator must not hand their memory to others while our streams use it.
  void keep(const std::vector<at::Tensor>& tensors) const {
    for (const auto& tensor : tensors) {
      if (tensor.device() != device || tensor.numel() == 0) continue;
      torch.recordDataPtrOnStream(tensor.storage().data_ptr(), in);
      torch.recordDataPtrOnStream(tensor.storage().data_ptr(), out);
    }
  }
};

class AllDeviceStreams {
 public:
  // Of what is on their way out of the host now, on every device that has been used.
  std::vector<std::shared_ptr<c10::Event>> results() {
    std::vector<std::shared_ptr<c10::Event>> events;
    const std::lock_guard lock(mutex_);
    for (const auto& [index, streams] : streams_) {
      if (!streams) continue;
      events.push_back(std::make_shared<c10::Event>(streams->device.type()));
      events.back()->record(streams->out);
    }
    return events;
  }

  // Made when first asked for. Throws UsageError for a device that the runtime does not drive.
  std::shared_ptr<const DeviceStreams> of(c10::Device device) {
    const std::lock_guard lock(mutex_);
    auto& streams = streams_[device.index()];
    if (streams) return streams;
    if (device.type() != c10::kCUDA && device.type() != c10::kPrivateUse1) refuse(device);
    DeviceRuntime& runtime = device_runtime();
    const bool cuda = std::string_view(runtime.name()) == "cuda";
    if (device.type() != (cuda ? c10::kCUDA : c10::kPrivateUse1)) refuse(device);
    streams = std::make_shared<const DeviceStreams>(device, runtime);
    return streams;
  }

 private:
  [[noreturn]] static void refuse(c10::Device device) {
    throw UsageError("the tensor is on " + device.str() +
                     ", and hier works on CPU and CUDA tensors; pass tensor.cpu()");
  }

  std::mutex mutex_;  // guards streams_
  std::map<c10::DeviceIndex, std::shared_ptr<const DeviceStreams>> streams_;
};

// What a collective's builder needs of its backend.
class DeviceBackend : public c10d::Backend {
 public:
  DeviceBackend(int rank, int size) : c10d::Backend(rank, size) {}
  // Throws AbortedError where this rank is in none.
  std::shared_ptr<Group> group() const {
    if (auto group = current_group()) return group;
    throw AbortedError("rank " + std::to_string(getRank()) +
                       " is in no group: the process group was made with enable_reconfigure, or "
                       "left its group and made no other; call reconfigure (torch 2.14 on)");
  }
  std::shared_ptr<const DeviceStreams> streams_of(c10::Device device) const {
    return streams_->of(device);
  }

 protected:
  // Null where this rank is in none. Throws UsageError in a forked child, where the lock may be
  // held for good.
  std::shared_ptr<Group> current_group() const {
    origin_.check();
    const std::lock_guard lock(group_mutex_);
    return group_;
  }
  void set_group(std::shared_ptr<Group> group) {
    const std::lock_guard lock(group_mutex_);
    group_.swap(group);  // the old one ends behind the lock
  }
  const Origin origin_;
  AllDeviceStreams& streams() { return *streams_; }

 private:
  mutable std::mutex group_mutex_;
  std::shared_ptr<Group> group_;
  const std::unique_ptr<AllDeviceStreams> streams_ = std::make_unique<AllDeviceStreams>();
};

}  // namespace hier::torch_backend
