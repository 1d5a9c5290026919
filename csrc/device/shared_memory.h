// Device memory that the ranks of a node share, with a word that tells kernels of a failure.
#pragma once

#include <memory>
#include <vector>

#include "device/mapped_memory.h"

namespace hier {

class SharedDeviceMemory {
 public:
  // As MappedMemory; `importers` is an array by local rank. The handle of one is of the other.
  SharedDeviceMemory(DeviceRuntime& runtime, int device, int local_size, int local_rank,
                     size_t bytes, MappedMemory::Importer* importers);
  SharedDeviceMemory(const SharedDeviceMemory&) = delete;
  SharedDeviceMemory& operator=(const SharedDeviceMemory&) = delete;
  ~SharedDeviceMemory();  // no stream uses it any more

  const DeviceRuntime::SharedHandle& handle() const { return memory_.handle(); }
  void open(const std::vector<DeviceRuntime::SharedHandle>& handles) { memory_.open(handles); }
  std::byte* of(int local_rank) const { return memory_.of(local_rank); }

  // Writes 1 to a word of the own memory, beside all other streams: a kernel that waits reads it.
  void raise_word(size_t offset) noexcept;

 private:
  DeviceRuntime& runtime_;
  MappedMemory memory_;
  std::byte* one_ = nullptr;  // pinned
  DeviceRuntime::Stream stream_ = nullptr;
};

}  // namespace hier
