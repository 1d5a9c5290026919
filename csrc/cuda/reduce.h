// The reduce table on the GPU: what csrc/reduce does on the CPU, with the same bits (a NaN may be
// another NaN). All calls are asynchronous on `stream`, a cudaStream_t of the current device; the
// pointers are device pointers, or any that the device can reach. Throws UsageError and CudaError.
#pragma once

#include <cstddef>
#include <span>

#include "reduce/reduce.h"

namespace hier::cuda {

// dst[i] = dst[i] op src[i]. avg adds, as sum does.
void reduce(void* dst, const void* src, DType dtype, ReduceOp op, size_t count, void* stream);

// Every out = the sources (1 to 128) reduced in canonical tree order, divided by divisor if it is
// above 1, in one pass over memory. An out may be the very same pointer as a source.
void reduce_many(DType dtype, ReduceOp op, std::span<void* const> outs,
                 std::span<const void* const> sources, size_t count, int divisor, void* stream);

void divide(DType dtype, void* data, size_t count, int divisor, void* stream);

}  // namespace hier::cuda
