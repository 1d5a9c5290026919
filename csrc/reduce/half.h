// The two 16-bit float formats: conversion to and from f32, rounding to nearest even. Each function
// takes one lane (uint32_t, float) or a GCC vector of them, and has no branch. Subnormals are kept
// even where the thread flushes them, because no step reads or makes a subnormal f32.
#pragma once

#include <cstdint>

namespace hier {

// `bits` holds an f16 in its low half.
template <class F, class U>
[[gnu::always_inline]] inline F f16_to_f32(U bits) {
  const U magnitude = (bits & 0x7fffu) << 13;  // exponent and fraction, where an f32 has them
  const U exponent = magnitude & 0x0f800000u;
  const U rebiased = magnitude + (112u << 23);
  const U infinite = rebiased + (112u << 23);  // infinity and NaN: exponent 255
  // A subnormal counts units of 2^-24: given the exponent of 2^-14, only that 2^-14 is too much.
  const U subnormal =
      __builtin_bit_cast(U, __builtin_bit_cast(F, rebiased + (1u << 23)) - 0x1p-14f);
  const U finite = exponent == 0u ? subnormal : rebiased;
  const U all = exponent == 0x0f800000u ? infinite : finite;
  return __builtin_bit_cast(F, all | ((bits & 0x8000u) << 16));
}

// The f16 in the low half of the result. A NaN becomes quiet and keeps its top fraction bits, as
// the hardware instruction does.
template <class U, class F>
[[gnu::always_inline]] inline U f32_to_f16(F value) {
  const U bits = __builtin_bit_cast(U, value);
  const U magnitude = bits & 0x7fffffffu;
  const F absolute = __builtin_bit_cast(F, magnitude);
  const U nan = ((magnitude >> 13) & 0x3ffu) | 0x7e00u;
  const U infinity = U{} + 0x7c00u;
  // The ulp of 0.5 is 2^-24, the unit of f16 subnormals: the addition rounds to it.
  const U subnormal = __builtin_bit_cast(U, absolute + 0.5f) - 0x3f000000u;
  const U normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const U small = absolute < 0x1p-14f ? subnormal : normal;
  const U finite = absolute >= 65520.0f ? infinity : small;  // half an ulp above the largest
  const U all = value != value ? nan : finite;
  return all | ((bits >> 16) & 0x8000u);
}

// `bits` holds a bf16 in its low half.
template <class F, class U>
[[gnu::always_inline]] inline F bf16_to_f32(U bits) {
  return __builtin_bit_cast(F, bits << 16);
}

// The bf16 in the low half of the result; any NaN stays one.
template <class U, class F>
[[gnu::always_inline]] inline U f32_to_bf16(F value) {
  const U bits = __builtin_bit_cast(U, value);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U nan = (bits >> 16) | 0x40u;
  return value != value ? nan : rounded;
}

}  // namespace hier
