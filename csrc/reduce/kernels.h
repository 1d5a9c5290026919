// The tables of reduction loops, one per instruction set, and the choice among them. Private to
// this directory, its bindings and its tests: everyone else uses reduce.h.
#pragma once

#include <array>
#include <cassert>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "reduce/reduce.h"

namespace hier {

// out[i] = the canonical tree over sources[0..k)[i]; k is fixed by the function. `out` may be the
// very same pointer as a source.
using FoldFn = void (*)(void* out, const void* const* sources, size_t count);
using DivideFn = void (*)(void* data, size_t count, int divisor);

// Only the sums of floats have the wide folds; the others combine pairs, block by block.
struct Folds {
  ReduceFn pair = nullptr;
  FoldFn two = nullptr, three = nullptr, four = nullptr, eight = nullptr;
};

constexpr size_t kNumDTypes = 10, kNumOps = 8;

// What check_supported rejects is null.
struct Kernels {
  const char* name = nullptr;
  std::array<std::array<Folds, kNumOps>, kNumDTypes> folds{};
  std::array<DivideFn, kNumDTypes> divide{};

  constexpr Folds& at(DType dtype, ReduceOp op) {
    return folds[static_cast<size_t>(dtype) - 1][static_cast<size_t>(op) - 1];
  }
  constexpr const Folds& at(DType dtype, ReduceOp op) const {
    return folds[static_cast<size_t>(dtype) - 1][static_cast<size_t>(op) - 1];
  }
};

extern const Kernels kBaselineKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// What this processor runs, best first. Never empty: baseline is last.
std::vector<const Kernels*> available_kernels();

// The best of them, chosen at the first call.
const Kernels& best_kernels();

// As reduce_many and divide of reduce.h, by given kernels.
void reduce_many(const Kernels& kernels, DType dtype, ReduceOp op, std::span<void* const> outs,
                 std::span<const void* const> sources, size_t count, int divisor);
void divide(const Kernels& kernels, DType dtype, void* data, size_t count, int divisor);

}  // namespace hier
