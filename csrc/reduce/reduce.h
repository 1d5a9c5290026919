// Reductions of arrays: dtype x operation tables, dispatched to AVX2 or AVX-512 at load time.
// 16-bit floats are added in f32 and rounded to nearest even after each addition, so that one
// k-way sum and a chain of pairwise sums over the wire give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace hier {

// Append only: the values are part of the run header.
enum class DType : uint8_t { f64 = 1, f32, f16, bf16, i64, i32, i16, i8, u8, boolean };
enum class ReduceOp : uint8_t { sum = 1, avg, min, max, prod, band, bor, bxor };

size_t size_of(DType dtype);
const char* name_of(DType dtype);
const char* name_of(ReduceOp op);
DType parse_dtype(std::string_view name);  // NumPy's names and "bfloat16"; throws UsageError
ReduceOp parse_op(std::string_view name);  // throws UsageError

// Throws UsageError if the operation has no meaning for the dtype (avg of integers, bits of
// floats). bool: sum, max and bor are "or"; prod, min and band are "and"; bxor is "xor".
void check_supported(DType dtype, ReduceOp op);

// What each pointer of a reduction must be. The kernels assert it, and Group sees to it.
inline bool is_aligned(const void* pointer, size_t element_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % element_bytes == 0;
}

// dst[i] = dst[i] op src[i]. avg adds, as sum does: divide() finishes it. dst and src do not
// overlap.
using ReduceFn = void (*)(void* dst, const void* src, size_t count);
ReduceFn reduce_fn(DType dtype, ReduceOp op);

// Every outs[j][i] = the reduction of sources[0..k)[i] along the canonical tree
// tree(k) = tree(largest power of two <= k) op tree(the rest), in one pass over memory.
// divisor > 1 divides the result (avg). An out may be the very same pointer as a source.
void reduce_many(DType dtype, ReduceOp op, std::span<void* const> outs,
                 std::span<const void* const> sources, size_t count, int divisor = 1);

void divide(DType dtype, void* data, size_t count, int divisor);

const char* instruction_set();  // "avx512", "avx2" or "baseline": what was chosen

}  // namespace hier
