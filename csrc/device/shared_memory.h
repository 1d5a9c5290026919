// Device memory of the ranks of a node, of one size, which all of them map.
#pragma once

#include <vector>

#include "device/runtime.h"

namespace hier {

class SharedDeviceMemory {
 public:
  // Throws CudaError where there is no memory that others can map.
  SharedDeviceMemory(DeviceRuntime& runtime, int device, int local_size, int local_rank,
                     size_t bytes);
  SharedDeviceMemory(const SharedDeviceMemory&) = delete;
  SharedDeviceMemory& operator=(const SharedDeviceMemory&) = delete;
  ~SharedDeviceMemory();  // no stream uses it any more

  const DeviceRuntime::SharedHandle& handle() const { return handle_; }
  void open(const std::vector<DeviceRuntime::SharedHandle>& handles);  // of all local ranks
  std::byte* of(int local_rank) const { return memory_[static_cast<size_t>(local_rank)]; }

  // Writes 1 to a word of the own memory, beside all other streams: a kernel that waits reads it.
  void raise_word(size_t offset) noexcept;

 private:
  DeviceRuntime& runtime_;
  const int device_, local_rank_;
  DeviceRuntime::SharedHandle handle_{};
  std::vector<std::byte*> memory_;  // by local rank
  std::byte* one_ = nullptr;        // pinned
  DeviceRuntime::Stream stream_ = nullptr;
};

}  // namespace hier
