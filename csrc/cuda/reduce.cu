// The reduce kernels of every dtype but f64, and the functions of reduce.h.
#include "cuda/reduce.h"

#include "cuda/launch.h"
#include "cuda/reduce_table.h"

namespace hier::cuda {

void reduce_many(DType dtype, ReduceOp op, std::span<void* const> outs,
                 std::span<const void* const> sources, size_t count, int divisor, void* stream) {
  const ReduceArgs args = make_reduce_args(dtype, op, outs, sources, count, divisor);
  if (count == 0) return;
  if (dtype == DType::f64) return launch_f64(args, op, stream);
  visit(dtype, op, sources.size(), Launch{args, static_cast<cudaStream_t>(stream)});
}

void reduce(void* dst, const void* src, DType dtype, ReduceOp op, size_t count, void* stream) {
  void* const outs[] = {dst};
  const void* const sources[] = {dst, src};
  reduce_many(dtype, op, outs, sources, count, 1, stream);
}

void divide(DType dtype, void* data, size_t count, int divisor, void* stream) {
  void* const outs[] = {data};
  const void* const sources[] = {data};
  reduce_many(dtype, ReduceOp::sum, outs, sources, count, divisor, stream);
}

}  // namespace hier::cuda
