// The reduction loops for any machine: 16-byte vectors, SSE2 on x86.
#include "reduce/kernels.h"

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "reduce/half.h"

#define HIER_ISA baseline
#define HIER_TARGET
#define HIER_WIDTH 16
#include "reduce/kernels.inc"

namespace hier {

constinit const Kernels kBaselineKernels = baseline::make_kernels("baseline");

}  // namespace hier
