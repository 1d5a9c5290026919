// Element types and operations of the device's reduce table: the same values, rounding and order as
// csrc/reduce, lane by lane. Which NaN comes out is open.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/context.h"
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include "reduce/half.h"
#endif

namespace hier::cuda {

// A wide value is what the arithmetic is done in: f32 for the 16-bit floats, 32-bit integers for
// shorter ones.
template <class T>
struct Plain {
  using Stored = T;
  using Short = std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>;
  using Wide = std::conditional_t<sizeof(T) < 4, Short, T>;
  static constexpr bool kFloat = std::is_floating_point_v<T>;
  HIER_DEVICE static Wide widen(Stored x) { return x; }
  HIER_DEVICE static Stored narrow(Wide x) { return static_cast<Stored>(x); }
};

struct Float16 {
  using Stored = uint16_t;
  using Wide = float;
  static constexpr bool kFloat = true;
#ifdef __CUDACC__
  HIER_DEVICE static Wide widen(Stored x) { return __half2float(__ushort_as_half(x)); }
  HIER_DEVICE static Stored narrow(Wide x) { return __half_as_ushort(__float2half_rn(x)); }
#else
  static Wide widen(Stored x) { return f16_to_f32<float>(uint32_t{x}); }
  static Stored narrow(Wide x) { return static_cast<Stored>(f32_to_f16<uint32_t>(x)); }
#endif
};

struct BFloat16 {
  using Stored = uint16_t;
  using Wide = float;
  static constexpr bool kFloat = true;
#ifdef __CUDACC__
  HIER_DEVICE static Wide widen(Stored x) { return __bfloat162float(__ushort_as_bfloat16(x)); }
  HIER_DEVICE static Stored narrow(Wide x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
#else
  static Wide widen(Stored x) { return bf16_to_f32<float>(uint32_t{x}); }
  static Stored narrow(Wide x) { return static_cast<Stored>(f32_to_bf16<uint32_t>(x)); }
#endif
};

template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

struct Sum {
  static constexpr bool kBitwise = false;
  template <class T>
  HIER_DEVICE static T apply(T a, T b) {
    return a + b;
  }
};

struct Prod {
  static constexpr bool kBitwise = false;
  template <class T>
  HIER_DEVICE static T apply(T a, T b) {
    return a * b;
  }
};

// Propagates NaN and orders -0 before +0: the selects differ for these alone, "or" joins them.
struct Min {
  static constexpr bool kBitwise = false;
  template <class T>
  HIER_DEVICE static T apply(T a, T b) {
    const T x = a < b ? a : b;
    if constexpr (!std::is_floating_point_v<T>) {
      return x;
    } else {
      const T y = b < a ? b : a;
      return __builtin_bit_cast(
          T, __builtin_bit_cast(BitsOf<T>, x) | __builtin_bit_cast(BitsOf<T>, y));
    }
  }
};

struct Max {
  static constexpr bool kBitwise = false;
  template <class T>
  HIER_DEVICE static T apply(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      return -Min::apply(-a, -b);
    } else {
      return a > b ? a : b;
    }
  }
};

struct And {
  static constexpr bool kBitwise = true;
  template <class T>
  HIER_DEVICE static T apply(T a, T b) {
    return a & b;
  }
};

struct Or {
  static constexpr bool kBitwise = true;
  template <class T>
  HIER_DEVICE static T apply(T a, T b) {
    return a | b;
  }
};

struct Xor {
  static constexpr bool kBitwise = true;
  template <class T>
  HIER_DEVICE static T apply(T a, T b) {
    return a ^ b;
  }
};

}  // namespace hier::cuda
