// Wide loads and stores: 16 bytes of an array, and eight floats of any dtype as f32.
#pragma once

#include "cuda/element.h"
#include "cuda/ranges.h"

namespace hier::cuda {

// 16 bytes of one array: one load, one store, four registers.
struct alignas(kPackBytes) Pack {
  uint32_t words[4];
};

template <class T>
struct Lanes {
  T lane[kPackBytes / sizeof(T)];
};

HIER_DEVICE void store_pack(void* to, Pack pack) {
#ifdef __CUDACC__
  // nvcc splits an assignment into words where it has just put them together.
  __stwb(static_cast<uint4*>(to),
         make_uint4(pack.words[0], pack.words[1], pack.words[2], pack.words[3]));
#else
  *static_cast<Pack*>(to) = pack;
#endif
}

// Four elements of one array: one load, one store.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T lane[4];
};

template <class T>
HIER_DEVICE void store_four(T* to, const Four<T>& four) {
  if constexpr (sizeof(four) == kPackBytes) {
    store_pack(to, __builtin_bit_cast(Pack, four));
  } else {
#ifdef __CUDACC__
    __stwb(reinterpret_cast<uint2*>(to), __builtin_bit_cast(uint2, four));
#else
    *reinterpret_cast<Four<T>*>(to) = four;
#endif
  }
}

struct Eight {
  float lane[kGroup];
};

template <class Element>
HIER_DEVICE Eight load_eight(const void* array, const Spot& spot) {
  using Quad = Four<typename Element::Stored>;
  const auto* first = static_cast<const typename Element::Stored*>(array) + spot.first;
  const Quad quads[2] = {*reinterpret_cast<const Quad*>(first),
                         *reinterpret_cast<const Quad*>(first + spot.gap)};
  Eight result;
#pragma unroll
  for (size_t i = 0; i < kGroup; ++i) {
    result.lane[i] = Element::widen(quads[i / 4].lane[i % 4]);
  }
  return result;
}

template <class Element>
HIER_DEVICE void store_eight(void* array, const Spot& spot, const Eight& values) {
  auto* first = static_cast<typename Element::Stored*>(array) + spot.first;
#pragma unroll
  for (size_t k = 0; k < 2; ++k) {
    Four<typename Element::Stored> quad;
#pragma unroll
    for (size_t i = 0; i < 4; ++i) quad.lane[i] = Element::narrow(values.lane[4 * k + i]);
    store_four(first + k * spot.gap, quad);
  }
}

template <class Element>
HIER_DEVICE float load_one(const void* array, size_t index) {
  return Element::widen(static_cast<const typename Element::Stored*>(array)[index]);
}

template <class Element>
HIER_DEVICE void store_one(void* array, size_t index, float value) {
  static_cast<typename Element::Stored*>(array)[index] = Element::narrow(value);
}

}  // namespace hier::cuda
