// LARS on the GPU over many tensors: allreduce/optim/lars.py says what is computed. Asynchronous on
// `stream`, a cudaStream_t of the current device; pointers are device pointers. Reads parameters
// and gradients twice, once for their norms; the sums are in f32, in an order that tensors' sizes
// and alignment give, so that a call gives the same bits when it is made again. Throws UsageError
// and CudaError.
#pragma once

#include "cuda/sgd.h"

namespace hier::cuda {

struct LarsTensor : SgdTensor {
  double trust = 0;  // the trust coefficient; 0: the tensor takes a plain step
};

// Floats of the workspace of a call, for tensors of these sizes.
size_t lars_workspace(std::span<const size_t> counts);

// step has the reference form. workspace: f32, used until the call is done.
void lars(std::span<const LarsTensor> tensors, DType gradient_dtype, const SgdStep& step,
          float* workspace, void* stream);

}  // namespace hier::cuda
