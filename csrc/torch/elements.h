// How the core sees torch's dtypes and reduction operations.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Types.hpp>

#include "base/error.h"
#include "reduce/reduce.h"

namespace hier::torch_backend {

// A complex number is two reals; what the core cannot reduce it can still move, as bytes.
struct Elements {
  DType dtype;
  size_t per_element = 1;
  bool reducible = true;
};

inline Elements elements_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return {DType::f64};
    case at::kFloat:
      return {DType::f32};
    case at::kHalf:
      return {DType::f16};
    case at::kBFloat16:
      return {DType::bf16};
    case at::kLong:
      return {DType::i64};
    case at::kInt:
      return {DType::i32};
    case at::kShort:
      return {DType::i16};
    case at::kChar:
      return {DType::i8};
    case at::kByte:
      return {DType::u8};
    case at::kBool:
      return {DType::boolean};
    case at::kComplexDouble:
      return {DType::f64, 2};
    case at::kComplexFloat:
      return {DType::f32, 2};
    case at::kComplexHalf:
      return {DType::f16, 2};
    default:
      return {DType::u8, c10::elementSize(type), false};
  }
}

// PREMUL_SUM is a sum: the factor is applied before it, see CallBuilder.
inline ReduceOp op_of(const c10d::ReduceOp& op) {
  switch (op.op_) {
    case c10d::ReduceOp::SUM:
    case c10d::ReduceOp::PREMUL_SUM:
      return ReduceOp::sum;
    case c10d::ReduceOp::AVG:
      return ReduceOp::avg;
    case c10d::ReduceOp::MIN:
      return ReduceOp::min;
    case c10d::ReduceOp::MAX:
      return ReduceOp::max;
    case c10d::ReduceOp::PRODUCT:
      return ReduceOp::prod;
    case c10d::ReduceOp::BAND:
      return ReduceOp::band;
    case c10d::ReduceOp::BOR:
      return ReduceOp::bor;
    case c10d::ReduceOp::BXOR:
      return ReduceOp::bxor;
    default:
      throw UsageError("op: hier has SUM AVG MIN MAX PRODUCT BAND BOR BXOR PREMUL_SUM");
  }
}

inline bool is_linear(const c10d::ReduceOp& op) {
  return op == c10d::ReduceOp::SUM || op == c10d::ReduceOp::AVG || op == c10d::ReduceOp::PREMUL_SUM;
}

}  // namespace hier::torch_backend
