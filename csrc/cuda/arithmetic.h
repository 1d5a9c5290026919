// f32 arithmetic whose rounding is the same on CPU and GPU: what is fused is said, and nvcc fuses
// nothing else.
#pragma once

#include <cmath>

#include "cuda/context.h"

namespace hier::cuda {

#ifdef __CUDACC__
HIER_DEVICE float times(float a, float b) { return __fmul_rn(a, b); }
HIER_DEVICE float plus(float a, float b) { return __fadd_rn(a, b); }
HIER_DEVICE float minus(float a, float b) { return __fsub_rn(a, b); }
HIER_DEVICE float times_plus(float a, float b, float c) { return __fmaf_rn(a, b, c); }
HIER_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
HIER_DEVICE float root(float a) { return __fsqrt_rn(a); }
#else
// The host is compiled with -ffp-contract=off.
inline float times(float a, float b) { return a * b; }
inline float plus(float a, float b) { return a + b; }
inline float minus(float a, float b) { return a - b; }
inline float times_plus(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float divide(float a, float b) { return a / b; }
inline float root(float a) { return std::sqrt(a); }
#endif

}  // namespace hier::cuda
