// Chooses the instruction set, once, by what the processor reports. A function pointer instead of
// an ifunc: ifuncs run before the sanitizers are set up.
#include "reduce/kernels.h"

namespace hier {

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) found.push_back(&kAvx512Kernels);
  if (avx2) found.push_back(&kAvx2Kernels);
#endif
  found.push_back(&kBaselineKernels);
  return found;
}

const Kernels& best_kernels() {
  static const Kernels* const best = available_kernels().front();
  return *best;
}

ReduceFn reduce_fn(DType dtype, ReduceOp op) {
  check_supported(dtype, op);
  return best_kernels().at(dtype, op).pair;
}

void reduce_many(DType dtype, ReduceOp op, std::span<void* const> outs,
                 std::span<const void* const> sources, size_t count, int divisor) {
  reduce_many(best_kernels(), dtype, op, outs, sources, count, divisor);
}

void divide(DType dtype, void* data, size_t count, int divisor) {
  divide(best_kernels(), dtype, data, count, divisor);
}

const char* instruction_set() { return best_kernels().name; }

}  // namespace hier
