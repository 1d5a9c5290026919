// Names and sizes of dtypes and operations, and which operation has a meaning for which dtype.
#include <array>
#include <string>

#include "base/error.h"
#include "reduce/reduce.h"

namespace hier {
namespace {

struct DTypeRow {
  DType dtype;
  const char* name;
  size_t size;
  bool is_float;
};

constexpr std::array<DTypeRow, 10> kDTypes = {{
    {DType::f64, "float64", 8, true},
    {DType::f32, "float32", 4, true},
    {DType::f16, "float16", 2, true},
    {DType::bf16, "bfloat16", 2, true},
    {DType::i64, "int64", 8, false},
    {DType::i32, "int32", 4, false},
    {DType::i16, "int16", 2, false},
    {DType::i8, "int8", 1, false},
    {DType::u8, "uint8", 1, false},
    {DType::boolean, "bool", 1, false},
}};

struct OpRow {
  ReduceOp op;
  const char* name;
};

constexpr std::array<OpRow, 8> kOps = {{
    {ReduceOp::sum, "sum"},
    {ReduceOp::avg, "avg"},
    {ReduceOp::min, "min"},
    {ReduceOp::max, "max"},
    {ReduceOp::prod, "prod"},
    {ReduceOp::band, "band"},
    {ReduceOp::bor, "bor"},
    {ReduceOp::bxor, "bxor"},
}};

// A value from a peer's header may be none of ours, hence the checks.
const DTypeRow& row_of(DType dtype) {
  const size_t index = static_cast<size_t>(dtype) - 1;
  if (index >= kDTypes.size()) {
    throw UsageError("there is no dtype number " + std::to_string(static_cast<int>(dtype)));
  }
  return kDTypes[index];
}

const OpRow& row_of(ReduceOp op) {
  const size_t index = static_cast<size_t>(op) - 1;
  if (index >= kOps.size()) {
    throw UsageError("there is no operation number " + std::to_string(static_cast<int>(op)));
  }
  return kOps[index];
}

template <class Rows>
std::string names_of(const Rows& rows) {
  std::string names;
  for (const auto& row : rows) names += (names.empty() ? "" : ", ") + std::string(row.name);
  return names;
}

}  // namespace

size_t size_of(DType dtype) { return row_of(dtype).size; }
const char* name_of(DType dtype) { return row_of(dtype).name; }
const char* name_of(ReduceOp op) { return row_of(op).name; }

DType parse_dtype(std::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (name == row.name) return row.dtype;
  }
  throw UsageError("dtype '" + std::string(name) + "' cannot be reduced; the dtypes are " +
                   names_of(kDTypes));
}

ReduceOp parse_op(std::string_view name) {
  for (const OpRow& row : kOps) {
    if (name == row.name) return row.op;
  }
  throw UsageError("unknown operation '" + std::string(name) + "'; the operations are " +
                   names_of(kOps));
}

void check_supported(DType dtype, ReduceOp op) {
  const DTypeRow& type = row_of(dtype);
  const bool is_bitwise = op == ReduceOp::band || op == ReduceOp::bor || op == ReduceOp::bxor;
  const char* wrong = nullptr;
  if (type.is_float && is_bitwise) {
    wrong = "bitwise operations need an integer or bool array";
  } else if (!type.is_float && op == ReduceOp::avg) {
    wrong =
        "the average of integers is no integer; use 'sum' and divide it, or convert the array "
        "to a float dtype";
  }
  if (wrong == nullptr) return;
  throw UsageError(std::string("op '") + row_of(op).name + "' on dtype " + type.name + ": " +
                   wrong);
}

}  // namespace hier
