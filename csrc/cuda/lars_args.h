// The arguments of LARS's kernels, and how any number of tensors becomes several launches.
#pragma once

#include <vector>

#include "cuda/lars.h"
#include "cuda/sgd_args.h"

namespace hier::cuda {

// Sums of squares.
struct Squares {
  float parameters, gradients;
};

struct LarsArgs {
  SgdArgs sgd;
  float trusts[kMaxTensors];  // 0: a plain step
  float* ratios;              // of each tensor
  Squares* partials;          // of each chunk of a tensor that takes no plain step
};
static_assert(sizeof(LarsArgs) <= 4096, "more than a kernel takes as its arguments");

// Behind the ratios, the partials of one launch, which those of the next may overwrite.
constexpr size_t kRatiosRoom = kMaxTensors + 1;  // an even number: partials are pairs

inline size_t lars_workspace_of(std::span<const size_t> counts) {
  size_t chunks = 0;
  for (const size_t count : counts) chunks += (count + kChunk - 1) / kChunk;
  return kRatiosRoom + 2 * chunks;
}

// One element of the result is one launch of each kernel. Tensors are never merged: each has norms
// of its own.
inline std::vector<LarsArgs> plan_lars(std::span<const LarsTensor> tensors, DType gradient_dtype,
                                       const SgdStep& step, float* workspace) {
  check_float(gradient_dtype, "gradients");
  check_aligned(workspace, sizeof(Squares));
  if (step.form != SgdForm::reference) throw UsageError("LARS has the reference form only");
  LarsArgs first{};
  first.sgd.rates = make_rates(step);
  first.ratios = workspace;
  first.partials = reinterpret_cast<Squares*>(workspace + kRatiosRoom);
  std::vector<LarsArgs> launches{first};
  for (const LarsTensor& tensor : tensors) {
    if (!(tensor.trust >= 0)) {
      throw UsageError("trust must be at least 0, not " + std::to_string(tensor.trust));
    }
    if (launches.back().sgd.ranges.full()) launches.push_back(first);
    LarsArgs& args = launches.back();
    args.trusts[args.sgd.ranges.num_ranges] = static_cast<float>(tensor.trust);
    add_tensor(args.sgd, tensor, gradient_dtype, step, false);
  }
  return launches;
}

}  // namespace hier::cuda
