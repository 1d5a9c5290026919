// The dtypes that optimizers and data movers take: f32, bf16 and f16.
#pragma once

#include <string>

#include "base/error.h"
#include "cuda/element.h"
#include "reduce/reduce.h"

namespace hier::cuda {

inline void check_float(DType dtype, const char* what) {
  if (dtype != DType::f32 && dtype != DType::bf16 && dtype != DType::f16) {
    throw UsageError(std::string(what) + " must be of dtype float32, bfloat16 or float16, not " +
                     name_of(dtype));
  }
}

// Calls run.template operator()<Element>(). The caller has called check_float.
template <class Run>
void visit_float_element(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::bf16:
      return run.template operator()<BFloat16>();
    case DType::f16:
      return run.template operator()<Float16>();
    default:
      return run.template operator()<Plain<float>>();
  }
}

}  // namespace hier::cuda
