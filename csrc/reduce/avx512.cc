// The reduction loops for AVX-512 (F, BW, DQ, VL).
#include "reduce/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define HIER_ISA avx512
#define HIER_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")))
#define HIER_WIDTH 64
#include "reduce/kernels.inc"

namespace hier {

constinit const Kernels kAvx512Kernels = avx512::make_kernels("avx512");

}  // namespace hier

#endif
