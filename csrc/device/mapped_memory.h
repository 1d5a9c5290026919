// Device memory of one size on each rank of a node, which all of them map. A rank frees its own
// only once every other has closed it: what else happens is undefined by CUDA.
#pragma once

#include <vector>

#include "device/runtime.h"

namespace hier {

class MappedMemory {
 public:
  // A local rank, in host memory that all of them share, which is zero and outlives the object.
  struct alignas(64) Importer {
    std::atomic<int32_t> process;  // from its constructor on
    std::atomic<uint32_t> closed;  // 1: it maps nothing of the others, and will not
  };

  // Throws CudaError where there is no memory that others can map. `importers` by local rank.
  MappedMemory(DeviceRuntime& runtime, int device, int local_rank, std::vector<Importer*> importers,
               size_t bytes);
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;
  // No stream uses it any more. Waits a second for the other ranks to close, but for dead ones;
  // memory that one may still map is kept until the process ends.
  ~MappedMemory();

  const DeviceRuntime::SharedHandle& handle() const { return handle_; }
  void open(const std::vector<DeviceRuntime::SharedHandle>& handles);  // of all local ranks
  std::byte* of(int local_rank) const { return memory_[static_cast<size_t>(local_rank)]; }
  std::byte* own() const { return memory_[own_]; }
  const std::vector<std::byte*>& all() const { return memory_; }  // by local rank

 private:
  bool all_have_closed() const;

  DeviceRuntime& runtime_;
  const int device_;
  const size_t own_;
  const std::vector<Importer*> importers_;
  DeviceRuntime::SharedHandle handle_{};
  std::vector<std::byte*> memory_;
};

}  // namespace hier
