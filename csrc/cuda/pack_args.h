// The arguments of one pack or unpack kernel, and how any number of tensors becomes several.
#pragma once

#include <vector>

#include "cuda/floats.h"
#include "cuda/pack.h"
#include "cuda/ranges.h"

namespace hier::cuda {

struct PackArgs {
  Ranges ranges;  // of flat
  void* tensors[kMaxRanges];
  void* flat;
  float scale;
};

// One element of the result is one launch. A tensor that is not as far from a 16-byte boundary as
// its place in flat, counted in elements, is moved element by element.
inline std::vector<PackArgs> plan_pack(std::span<const Tensor> tensors, DType dtype, void* flat,
                                       DType flat_dtype, float scale) {
  check_float(dtype, "tensors");
  check_float(flat_dtype, "the flat array");
  check_aligned(flat, size_of(flat_dtype));
  PackArgs first{};
  first.flat = flat;
  first.scale = scale;
  std::vector<PackArgs> launches{first};
  for (const Tensor& tensor : tensors) {
    check_aligned(tensor.pointer, size_of(dtype));
    if (launches.back().ranges.full()) {
      const size_t begin = launches.back().ranges.end();
      launches.push_back(first);
      launches.back().ranges.begin = begin;
    }
    PackArgs& args = launches.back();
    const char* place = static_cast<const char*>(flat) + args.ranges.end() * size_of(flat_dtype);
    args.tensors[args.ranges.num_ranges] = tensor.pointer;
    args.ranges.add(tensor.count,
                    find_head({{tensor.pointer, size_of(dtype)}, {place, size_of(flat_dtype)}}));
  }
  return launches;
}

}  // namespace hier::cuda
