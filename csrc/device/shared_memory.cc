// Mapping the device memory of a node's ranks.
#include "device/shared_memory.h"

#include <cstring>

namespace hier {

SharedDeviceMemory::SharedDeviceMemory(DeviceRuntime& runtime, int device, int local_size,
                                       int local_rank, size_t bytes)
    : runtime_(runtime),
      device_(device),
      local_rank_(local_rank),
      memory_(static_cast<size_t>(local_size)) {
  std::byte* own = runtime_.allocate_shared(device, bytes, handle_);
  try {
    const uint32_t one = 1;
    one_ = runtime_.allocate_pinned(sizeof one);
    std::memcpy(one_, &one, sizeof one);
    stream_ = runtime_.create_stream(device);
  } catch (...) {
    if (one_) runtime_.free_pinned(one_);
    runtime_.free_shared(own);
    throw;
  }
  memory_[static_cast<size_t>(local_rank)] = own;
}

SharedDeviceMemory::~SharedDeviceMemory() {
  runtime_.destroy_stream(stream_);
  runtime_.free_pinned(one_);
  for (size_t rank = 0; rank < memory_.size(); ++rank) {
    if (!memory_[rank]) continue;
    if (rank == static_cast<size_t>(local_rank_)) {
      runtime_.free_shared(memory_[rank]);
    } else {
      runtime_.close_shared(memory_[rank]);
    }
  }
}

void SharedDeviceMemory::open(const std::vector<DeviceRuntime::SharedHandle>& handles) {
  for (size_t rank = 0; rank < memory_.size(); ++rank) {
    if (!memory_[rank]) memory_[rank] = runtime_.open_shared(device_, handles.at(rank));
  }
}

void SharedDeviceMemory::raise_word(size_t offset) noexcept {
  try {
    runtime_.copy(of(local_rank_) + offset, one_, sizeof(uint32_t), stream_);
  } catch (...) {
    // A device that has failed: nothing waits on it any more.
  }
}

}  // namespace hier
