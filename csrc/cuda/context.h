// Where a kernel's block body runs. A body is `template <class Ctx>` and is written as phases: each
// phase calls its function once per thread of the block. On the device that is every CUDA thread;
// on the host it is a loop, so that g++ and its sanitizers can run the very same body.
#pragma once

#include <cstddef>

#ifdef __CUDACC__
#define HIER_DEVICE __device__ __forceinline__
#else
#define HIER_DEVICE inline
#endif

namespace hier::cuda {

#ifdef __CUDACC__
struct DeviceCtx {
  HIER_DEVICE size_t block() const { return blockIdx.x; }
  HIER_DEVICE size_t num_blocks() const { return gridDim.x; }
  HIER_DEVICE size_t num_threads() const { return blockDim.x; }
  template <class Phase>
  HIER_DEVICE void phase(const Phase& run) const {
    run(static_cast<size_t>(threadIdx.x));
  }
  // What a thread wrote in the phase before, all threads of the block read in the next.
  HIER_DEVICE void sync() const { __syncthreads(); }
};
#endif

struct HostCtx {
  size_t block_, num_blocks_, num_threads_;
  size_t block() const { return block_; }
  size_t num_blocks() const { return num_blocks_; }
  size_t num_threads() const { return num_threads_; }
  template <class Phase>
  void phase(const Phase& run) const {
    for (size_t thread = 0; thread < num_threads_; ++thread) run(thread);
  }
  void sync() const {}
};

}  // namespace hier::cuda
