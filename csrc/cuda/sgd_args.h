// The arguments of one SGD kernel, and how any number of tensors becomes several.
#pragma once

#include <vector>

#include "cuda/floats.h"
#include "cuda/ranges.h"
#include "cuda/sgd.h"

namespace hier::cuda {

constexpr size_t kMaxTensors = 81;  // with what LARS adds, 4 KiB of arguments; half of ResNet-50's

// The numbers of a step that all tensors share.
struct SgdRates {
  float lr, momentum, scale;
  bool nesterov;
};

struct SgdArgs {
  RangeTable<kMaxTensors> ranges;  // of the tensors, counted as they lie in copy
  float* parameters[kMaxTensors];
  float* momenta[kMaxTensors];  // null if momentum is 0
  const void* gradients[kMaxTensors];
  float decays[kMaxTensors];   // times lr in the absorbed form
  float carries[kMaxTensors];  // what the old momentum is multiplied by
  uint16_t* copy;
  SgdRates rates;
};
static_assert(sizeof(SgdArgs) <= 4096, "more than a kernel takes as its arguments");

inline SgdRates make_rates(const SgdStep& step) {
  if (!(step.lr >= 0) || !(step.momentum >= 0 && step.momentum < 1)) {
    throw UsageError("lr must be at least 0 and momentum lie in [0, 1), not " +
                     std::to_string(step.lr) + " and " + std::to_string(step.momentum));
  }
  return {static_cast<float>(step.lr), static_cast<float>(step.momentum),
          static_cast<float>(step.scale), step.nesterov};
}

inline void check_momenta(const float* parameters, const float* momenta, double momentum) {
  if (momentum > 0 && momenta == nullptr && parameters != nullptr) {
    throw UsageError("momentum above 0 needs an array of momenta, one f32 for each parameter");
  }
  check_aligned(parameters, sizeof(float));
  check_aligned(momenta, sizeof(float));
}

// Whether `next` lies right behind the last tensor of args, in every array, and has its numbers.
inline bool adjoins(const SgdArgs& args, size_t gradient_size, const SgdTensor& next, float decay,
                    float carry) {
  if (args.ranges.num_ranges == 0) return false;
  const size_t last = args.ranges.num_ranges - 1, count = args.ranges.size_of_last();
  const char* gradients = static_cast<const char*>(args.gradients[last]) + count * gradient_size;
  const bool momenta = args.momenta[last] == nullptr || args.momenta[last] + count == next.momenta;
  return args.parameters[last] + count == next.parameters && momenta &&
         gradients == next.gradients && args.decays[last] == decay && args.carries[last] == carry;
}

// Where all arrays of a tensor have a 16-byte boundary; its parameters go to copy[place] on.
inline uint8_t tensor_head(const SgdTensor& tensor, const float* momenta, size_t gradient_size,
                           const uint16_t* copy, size_t place) {
  return find_head({{tensor.parameters, sizeof(float)},
                    {momenta, sizeof(float)},
                    {tensor.gradients, gradient_size},
                    {copy == nullptr ? nullptr : copy + place, sizeof(uint16_t)}});
}

// Adds a tensor that there is room for.
inline void add_tensor(SgdArgs& args, const SgdTensor& tensor, DType gradient_dtype,
                       const SgdStep& step, bool merge) {
  const size_t gradient_size = size_of(gradient_dtype);
  check_momenta(tensor.parameters, tensor.momenta, step.momentum);
  check_aligned(tensor.gradients, gradient_size);
  const bool absorbed = step.form == SgdForm::absorbed;
  const double carry = step.momentum * (absorbed ? tensor.correction : 1.0);
  const auto as_decay = static_cast<float>(tensor.weight_decay * (absorbed ? step.lr : 1.0));
  const auto as_carry = static_cast<float>(carry);
  if (merge && adjoins(args, gradient_size, tensor, as_decay, as_carry)) {
    args.ranges.extend(tensor.count);
    return;
  }
  const size_t k = args.ranges.num_ranges;
  float* momenta = step.momentum > 0 ? tensor.momenta : nullptr;
  args.parameters[k] = tensor.parameters;
  args.momenta[k] = momenta;
  args.gradients[k] = tensor.gradients;
  args.decays[k] = as_decay;
  args.carries[k] = as_carry;
  args.ranges.add(tensor.count,
                  tensor_head(tensor, momenta, gradient_size, args.copy, args.ranges.end()));
}

// One element of the result is one launch. Throws UsageError for what the kernels cannot do.
inline std::vector<SgdArgs> plan_sgd(std::span<const SgdTensor> tensors, DType gradient_dtype,
                                     const SgdStep& step, uint16_t* copy) {
  check_float(gradient_dtype, "gradients");
  check_aligned(copy, sizeof(uint16_t));
  SgdArgs first{};
  first.copy = copy;
  first.rates = make_rates(step);
  std::vector<SgdArgs> launches{first};
  for (const SgdTensor& tensor : tensors) {
    if (launches.back().ranges.full()) {
      const size_t begin = launches.back().ranges.end();
      launches.push_back(first);
      launches.back().ranges.begin = begin;
    }
    add_tensor(launches.back(), tensor, gradient_dtype, step, true);
  }
  return launches;
}

}  // namespace hier::cuda
