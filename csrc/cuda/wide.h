// Wide loads and stores: 16 bytes of an array, and eight floats of any dtype as f32.
#pragma once

#include "cuda/alignment.h"
#include "cuda/element.h"

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

struct Eight {
  float lane[kGroup];
};

// Elements [index, index + 8) of `array`, which has a 16-byte boundary there.
template <class Element>
HIER_DEVICE Eight load_eight(const void* array, size_t index) {
  using Stored = typename Element::Stored;
  constexpr size_t kLanes = kPackBytes / sizeof(Stored);
  const Stored* first = static_cast<const Stored*>(array) + index;
  Eight result;
#pragma unroll
  for (size_t k = 0; k < kGroup / kLanes; ++k) {
    const Pack pack = reinterpret_cast<const Pack*>(first)[k];
    const auto stored = __builtin_bit_cast(Lanes<Stored>, pack);
#pragma unroll
    for (size_t i = 0; i < kLanes; ++i) {
      result.lane[k * kLanes + i] = Element::widen(stored.lane[i]);
    }
  }
  return result;
}

template <class Element>
HIER_DEVICE void store_eight(void* array, size_t index, const Eight& values) {
  using Stored = typename Element::Stored;
  constexpr size_t kLanes = kPackBytes / sizeof(Stored);
  Stored* first = static_cast<Stored*>(array) + index;
#pragma unroll
  for (size_t k = 0; k < kGroup / kLanes; ++k) {
    Lanes<Stored> stored;
#pragma unroll
    for (size_t i = 0; i < kLanes; ++i) {
      stored.lane[i] = Element::narrow(values.lane[k * kLanes + i]);
    }
    store_pack(first + k * kLanes, __builtin_bit_cast(Pack, stored));
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
