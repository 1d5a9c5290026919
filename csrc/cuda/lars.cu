// LARS's kernels, and the functions of lars.h.
#include "cuda/lars.h"

#include "cuda/grid.h"
#include "cuda/lars_body.h"

namespace hier::cuda {

template <class Element>
__global__ void __launch_bounds__(kThreads) squares_kernel(const __grid_constant__ LarsArgs args) {
  __shared__ Squares shared[kThreads];
  squares_block<Element>(DeviceCtx{}, args, shared);
}

__global__ void __launch_bounds__(kThreads) ratios_kernel(const __grid_constant__ LarsArgs args) {
  __shared__ Squares shared[kThreads];
  ratios_block(DeviceCtx{}, args, shared);
}

template <class Element>
__global__ void __launch_bounds__(kThreads) lars_kernel(const __grid_constant__ LarsArgs args) {
  lars_block<Element>(DeviceCtx{}, args);
}

size_t lars_workspace(std::span<const size_t> counts) { return lars_workspace_of(counts); }

void lars(std::span<const LarsTensor> tensors, DType gradient_dtype, const SgdStep& step,
          float* workspace, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  for (const LarsArgs& args : plan_lars(tensors, gradient_dtype, step, workspace)) {
    const auto& ranges = args.sgd.ranges;
    if (ranges.num_chunks == 0) continue;
    const unsigned blocks = ranges.num_chunks;
    visit_float_element(gradient_dtype, [&]<class Element>() {
      squares_kernel<Element><<<blocks, kThreads, 0, on>>>(args);
      ratios_kernel<<<ranges.num_ranges, kThreads, 0, on>>>(args);
      lars_kernel<Element><<<blocks, kThreads, 0, on>>>(args);
    });
    check_cuda(cudaGetLastError(), "launching LARS");
  }
}

}  // namespace hier::cuda
