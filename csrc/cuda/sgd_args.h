// The arguments of one SGD kernel, and how any number of ranges becomes several.
#pragma once

#include <vector>

#include "cuda/floats.h"
#include "cuda/ranges.h"
#include "cuda/sgd.h"

namespace hier::cuda {

struct SgdArgs {
  Ranges ranges;
  float decays[kMaxRanges];  // times lr in the absorbed form
  float* parameters;
  float* momenta;
  const void* gradients;
  uint16_t* copy;
  float lr, momentum, scale;
  float carry;  // what the old momentum is multiplied by
  bool nesterov;
};

inline void check_sgd(const SgdArrays& arrays, const SgdStep& step) {
  check_float(arrays.gradient_dtype, "gradients");
  if (!(step.lr >= 0) || !(step.momentum >= 0 && step.momentum < 1)) {
    throw UsageError("lr must be at least 0 and momentum lie in [0, 1), not " +
                     std::to_string(step.lr) + " and " + std::to_string(step.momentum));
  }
  if (step.momentum > 0 && arrays.momenta == nullptr && arrays.parameters != nullptr) {
    throw UsageError("momentum above 0 needs an array of momenta, one f32 for each parameter");
  }
  check_aligned(arrays.parameters, sizeof(float));
  check_aligned(arrays.momenta, sizeof(float));
  check_aligned(arrays.gradients, size_of(arrays.gradient_dtype));
  check_aligned(arrays.copy, sizeof(uint16_t));
}

inline SgdArgs begin_sgd(const SgdArrays& arrays, const SgdStep& step) {
  const bool absorbed = step.form == SgdForm::absorbed;
  SgdArgs args{};
  args.parameters = arrays.parameters;
  args.momenta = step.momentum > 0 ? arrays.momenta : nullptr;
  args.gradients = arrays.gradients;
  args.copy = arrays.copy;
  args.lr = static_cast<float>(step.lr);
  args.momentum = static_cast<float>(step.momentum);
  args.scale = static_cast<float>(step.scale);
  args.carry = static_cast<float>(absorbed ? step.momentum * step.correction : step.momentum);
  args.nesterov = step.nesterov;
  return args;
}

// One element of the result is one launch. flat_head: the first element at which all arrays have a
// 16-byte boundary. Throws UsageError for what the kernels cannot do.
inline std::vector<SgdArgs> plan_sgd(const SgdArrays& arrays, std::span<const SgdRange> ranges,
                                     const SgdStep& step, uint8_t flat_head) {
  check_sgd(arrays, step);
  const SgdArgs first = begin_sgd(arrays, step);
  std::vector<SgdArgs> launches{first};
  for (const SgdRange& range : ranges) {
    if (launches.back().ranges.full()) {
      const size_t begin = launches.back().ranges.end();
      launches.push_back(first);
      launches.back().ranges.begin = begin;
    }
    SgdArgs& args = launches.back();
    const double decay = range.weight_decay * (step.form == SgdForm::absorbed ? step.lr : 1.0);
    args.decays[args.ranges.num_ranges] = static_cast<float>(decay);
    const size_t head = (flat_head - args.ranges.end()) % kGroup;
    args.ranges.add(range.count, flat_head == kNoGroups ? kNoGroups : static_cast<uint8_t>(head));
  }
  return launches;
}

inline std::vector<SgdArgs> plan_sgd(const SgdArrays& arrays, std::span<const SgdRange> ranges,
                                     const SgdStep& step) {
  return plan_sgd(arrays, ranges, step,
                  find_head({{arrays.parameters, sizeof(float)},
                             {step.momentum > 0 ? arrays.momenta : nullptr, sizeof(float)},
                             {arrays.gradients, size_of(arrays.gradient_dtype)},
                             {arrays.copy, sizeof(uint16_t)}}));
}

}  // namespace hier::cuda
