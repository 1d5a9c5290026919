// Many tensors to one flat array and back, cast and scaled on the way, in one pass over memory. A
// value is widened to f32, multiplied by scale, and rounded to nearest even. All calls are
// asynchronous on `stream`; pointers are device pointers, or any that the device can reach, and the
// lists of them may change once a call has returned. Throws UsageError and CudaError.
#pragma once

#include <cstddef>
#include <span>

#include "reduce/reduce.h"

namespace hier::cuda {

struct Tensor {
  void* pointer;
  size_t count;
};

// Both dtypes: f32, bf16 or f16. The tensors lie in flat one after the other, without gaps.
void pack(std::span<const Tensor> tensors, DType dtype, void* flat, DType flat_dtype, float scale,
          void* stream);
void unpack(std::span<const Tensor> tensors, DType dtype, const void* flat, DType flat_dtype,
            float scale, void* stream);

}  // namespace hier::cuda
