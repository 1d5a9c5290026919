// SGD on the GPU over many tensors, in one pass: allreduce/optim/sgd.py says what is computed. All
// calls are asynchronous on `stream`, a cudaStream_t of the current device; pointers are device
// pointers. Throws UsageError and CudaError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "reduce/reduce.h"

namespace hier::cuda {

// Equation (9) and (10) of Goyal et al., section 3.
enum class SgdForm { reference, absorbed };

struct SgdStep {
  SgdForm form = SgdForm::reference;
  double lr = 0, momentum = 0;
  double scale = 1;  // of the gradient, before all else
  bool nesterov = false;
};

// A tensor, or a part of a flat array: the same elements in the same order, anywhere.
struct SgdTensor {
  float* parameters;
  float* momenta;         // null if momentum is 0
  const void* gradients;  // f32, bf16 or f16
  size_t count;
  double weight_decay;
  double correction = 1;  // eta / eta_before, of the absorbed form alone
};

// Neighbours that adjoin in all arrays and have the same numbers are handled as one, so that a flat
// array costs no more than its ranges of equal weight decay. copy: null, or receives the new
// parameters as bf16, one tensor after the other.
void sgd(std::span<const SgdTensor> tensors, DType gradient_dtype, const SgdStep& step,
         uint16_t* copy, void* stream);

}  // namespace hier::cuda
