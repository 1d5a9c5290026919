// SGD on the GPU over a flat array of parameters, in one pass: allreduce/optim/sgd.py says what is
// computed. All calls are asynchronous on `stream`, a cudaStream_t of the current device; pointers
// are device pointers. Throws UsageError and CudaError.
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
  double correction = 1;  // eta / eta_before, of the absorbed form alone
  double scale = 1;       // of the gradient, before all else
  bool nesterov = false;
};

// Flat arrays of the same elements in the same order.
struct SgdArrays {
  float* parameters;
  float* momenta;  // null if momentum is 0
  const void* gradients;
  DType gradient_dtype;      // f32, bf16 or f16
  uint16_t* copy = nullptr;  // if not null, receives the new parameters as bf16
};

// The flat array is the ranges one after the other.
struct SgdRange {
  size_t count;
  double weight_decay;
};

void sgd(const SgdArrays& arrays, std::span<const SgdRange> ranges, const SgdStep& step,
         void* stream);

}  // namespace hier::cuda
