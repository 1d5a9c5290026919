// The reduction loops for AVX2 with F16C.
#include "reduce/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define HIER_ISA avx2
#define HIER_TARGET __attribute__((target("avx2,f16c")))
#define HIER_WIDTH 32
#include "reduce/kernels.inc"

namespace hier {

constinit const Kernels kAvx2Kernels = avx2::make_kernels("avx2");

}  // namespace hier

#endif
