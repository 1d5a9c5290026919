// The reduce kernels of f64, compiled without the check against double arithmetic.
#include "cuda/launch.h"
#include "cuda/reduce_table.h"

namespace hier::cuda {

void launch_f64(const ReduceArgs& args, ReduceOp op, void* stream) {
  visit_float<Plain<double>>(op, args.num_sources, Launch{args, static_cast<cudaStream_t>(stream)});
}

}  // namespace hier::cuda
