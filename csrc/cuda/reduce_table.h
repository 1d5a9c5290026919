// Which body reduces which dtype, operation and number of sources. `run` is called once, as
// run.template operator()<Element, Op, kWays>(); kWays 0 takes any number. Sums of floats, the ones
// that matter, have bodies of their own for 2, 4 and 8 sources.
#pragma once

#include "cuda/element.h"
#include "reduce/reduce.h"

namespace hier::cuda {

template <class Element, class Run>
void visit_float(ReduceOp op, size_t ways, const Run& run) {
  switch (op) {
    case ReduceOp::min:
      return run.template operator()<Element, Min, 0>();
    case ReduceOp::max:
      return run.template operator()<Element, Max, 0>();
    case ReduceOp::prod:
      return run.template operator()<Element, Prod, 0>();
    default:
      break;
  }
  switch (ways) {
    case 2:
      return run.template operator()<Element, Sum, 2>();
    case 4:
      return run.template operator()<Element, Sum, 4>();
    case 8:
      return run.template operator()<Element, Sum, 8>();
    default:
      return run.template operator()<Element, Sum, 0>();
  }
}

// Bits are reduced as bytes: see make_reduce_args.
template <class Run>
void visit_bits(ReduceOp op, const Run& run) {
  switch (op) {
    case ReduceOp::band:
      return run.template operator()<Plain<uint8_t>, And, 0>();
    case ReduceOp::bor:
      return run.template operator()<Plain<uint8_t>, Or, 0>();
    default:
      return run.template operator()<Plain<uint8_t>, Xor, 0>();
  }
}

// Sums and products wrap around, so they are those of the unsigned type.
template <class T, class Run>
void visit_integer(ReduceOp op, const Run& run) {
  using Unsigned = Plain<std::make_unsigned_t<T>>;
  switch (op) {
    case ReduceOp::sum:
      return run.template operator()<Unsigned, Sum, 0>();
    case ReduceOp::prod:
      return run.template operator()<Unsigned, Prod, 0>();
    case ReduceOp::min:
      return run.template operator()<Plain<T>, Min, 0>();
    case ReduceOp::max:
      return run.template operator()<Plain<T>, Max, 0>();
    default:
      return visit_bits(op, run);
  }
}

template <class Run>
void visit_boolean(ReduceOp op, const Run& run) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::max:
      return visit_bits(ReduceOp::bor, run);
    case ReduceOp::prod:
    case ReduceOp::min:
      return visit_bits(ReduceOp::band, run);
    default:
      return visit_bits(op, run);
  }
}

// Everything but f64, which is compiled apart. The caller has called check_supported.
template <class Run>
void visit(DType dtype, ReduceOp op, size_t ways, const Run& run) {
  switch (dtype) {
    case DType::f32:
      return visit_float<Plain<float>>(op, ways, run);
    case DType::f16:
      return visit_float<Float16>(op, ways, run);
    case DType::bf16:
      return visit_float<BFloat16>(op, ways, run);
    case DType::i64:
      return visit_integer<int64_t>(op, run);
    case DType::i32:
      return visit_integer<int32_t>(op, run);
    case DType::i16:
      return visit_integer<int16_t>(op, run);
    case DType::i8:
      return visit_integer<int8_t>(op, run);
    case DType::u8:
      return visit_integer<uint8_t>(op, run);
    case DType::boolean:
      return visit_boolean(op, run);
    case DType::f64:
      return;
  }
}

}  // namespace hier::cuda
