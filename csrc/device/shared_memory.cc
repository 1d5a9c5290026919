// A word of shared device memory that is written beside all streams.
#include "device/shared_memory.h"

#include <cstring>

namespace hier {

namespace {

std::vector<MappedMemory::Importer*> pointers(MappedMemory::Importer* importers, int count) {
  std::vector<MappedMemory::Importer*> result;
  for (int i = 0; i < count; ++i) result.push_back(importers + i);
  return result;
}

}  // namespace

SharedDeviceMemory::SharedDeviceMemory(DeviceRuntime& runtime, int device, int local_size,
                                       int local_rank, size_t bytes,
                                       MappedMemory::Importer* importers)
    : runtime_(runtime),
      memory_(runtime, device, local_rank, pointers(importers, local_size), bytes) {
  try {
    const uint32_t one = 1;
    one_ = runtime_.allocate_pinned(sizeof one);
    std::memcpy(one_, &one, sizeof one);
    stream_ = runtime_.create_stream(device);
  } catch (...) {
    if (one_) runtime_.free_pinned(one_);
    throw;
  }
}

SharedDeviceMemory::~SharedDeviceMemory() {
  runtime_.destroy_stream(stream_);
  runtime_.free_pinned(one_);
}

void SharedDeviceMemory::raise_word(size_t offset) noexcept {
  try {
    runtime_.copy(memory_.own() + offset, one_, sizeof(uint32_t), stream_);
  } catch (...) {
    // A device that has failed: nothing waits on it any more.
  }
}

}  // namespace hier
