// The arguments of one reduce kernel, and how a range is cut into 16-byte packs. Plain C++.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/error.h"
#include "cuda/alignment.h"
#include "reduce/reduce.h"

namespace hier::cuda {

constexpr size_t kMaxSources = 128, kMaxOuts = 64;  // 1.5 KiB of a kernel's 4 KiB of arguments

struct ReduceArgs {
  const void* sources[kMaxSources];
  void* outs[kMaxOuts];
  size_t num_sources, num_outs;
  // Elements [0, head) and those behind the packs are reduced one by one.
  size_t count, head, num_packs;
  int divisor;
};

// Packs are possible if all arrays are equally far from a 16-byte boundary.
inline void plan_packs(ReduceArgs& args, size_t element_size) {
  const uintptr_t phase = reinterpret_cast<uintptr_t>(args.outs[0]) % kPackBytes;
  bool equal = true;
  for (size_t k = 0; k < args.num_sources; ++k) {
    equal = equal && reinterpret_cast<uintptr_t>(args.sources[k]) % kPackBytes == phase;
  }
  for (size_t k = 0; k < args.num_outs; ++k) {
    equal = equal && reinterpret_cast<uintptr_t>(args.outs[k]) % kPackBytes == phase;
  }
  const size_t head = (kPackBytes - phase) % kPackBytes / element_size;
  args.head = equal && head < args.count ? head : args.count;
  args.num_packs = (args.count - args.head) * element_size / kPackBytes;
}

// Throws UsageError for what the kernels cannot do.
inline ReduceArgs make_reduce_args(DType dtype, ReduceOp op, std::span<void* const> outs,
                                   std::span<const void* const> sources, size_t count,
                                   int divisor) {
  check_supported(dtype, op);
  const auto check_number = [](size_t number, size_t most, const char* what) {
    if (number == 0 || number > most) {
      throw UsageError("a reduction on the GPU takes 1 to " + std::to_string(most) + " " + what +
                       ", not " + std::to_string(number));
    }
  };
  check_number(sources.size(), kMaxSources, "sources");
  check_number(outs.size(), kMaxOuts, "outputs");
  if (divisor < 1) {
    throw UsageError("the divisor must be at least 1, not " + std::to_string(divisor));
  }
  const bool is_float =
      dtype == DType::f64 || dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
  if (divisor > 1 && !is_float) {
    throw UsageError(std::string("an array of dtype ") + name_of(dtype) +
                     " cannot be divided: only floats can");
  }
  ReduceArgs args{};
  args.num_sources = sources.size();
  args.num_outs = outs.size();
  args.count = count;
  args.divisor = divisor;
  for (size_t k = 0; k < sources.size(); ++k) {
    check_aligned(sources[k], size_of(dtype));
    args.sources[k] = sources[k];
  }
  for (size_t k = 0; k < outs.size(); ++k) {
    check_aligned(outs[k], size_of(dtype));
    args.outs[k] = outs[k];
  }
  const bool bitwise = dtype == DType::boolean || op == ReduceOp::band || op == ReduceOp::bor ||
                       op == ReduceOp::bxor;
  const size_t element_size = bitwise ? 1 : size_of(dtype);  // bits are reduced as bytes
  args.count *= size_of(dtype) / element_size;
  plan_packs(args, element_size);
  return args;
}

}  // namespace hier::cuda
