// Launching a reduce kernel. Private to csrc/cuda.
#pragma once

#include <algorithm>

#include "cuda/grid.h"
#include "cuda/reduce_body.h"

namespace hier::cuda {

#ifdef __CUDACC__
// __grid_constant__: without it the arrays of pointers would be copied to each thread's stack.
template <class Element, class Op, int kWays>
__global__ void __launch_bounds__(kThreads) reduce_kernel(const __grid_constant__ ReduceArgs args) {
  reduce_block<Element, Op, kWays>(DeviceCtx{}, args);
}

struct Launch {
  const ReduceArgs& args;
  cudaStream_t stream;

  template <class Element, class Op, int kWays>
  void operator()() const {
    const size_t singles =
        args.count - args.num_packs * (kPackBytes / sizeof(typename Element::Stored));
    const size_t threads = std::max(args.num_packs, singles);
    reduce_kernel<Element, Op, kWays>
        <<<grid_of((threads + kThreads - 1) / kThreads), kThreads, 0, stream>>>(args);
    check_cuda(cudaGetLastError(), "launching a reduction");
  }
};
#endif

// f64 is compiled apart: everywhere else double arithmetic would be a slip, and an error.
void launch_f64(const ReduceArgs& args, ReduceOp op, void* stream);

}  // namespace hier::cuda
