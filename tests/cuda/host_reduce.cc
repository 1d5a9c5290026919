// Runs the GPU's reduce bodies on the CPU, for test_cuda_host_execution.py.
#include <cstdio>

#include "cuda/reduce_body.h"
#include "cuda/reduce_table.h"
#include "host_blocks.h"

namespace hier::cuda {
namespace {

struct RunBlocks {
  const ReduceArgs& args;
  size_t num_blocks, num_threads;

  template <class Element, class Op, int kWays>
  void operator()() const {
    run_blocks(num_blocks, num_threads,
               [&](const HostCtx& ctx) { reduce_block<Element, Op, kWays>(ctx, args); });
  }
};

}  // namespace

// Returns how many 16-byte packs were used, or -1 after printing an error.
extern "C" long host_reduce_many(const char* dtype_name, const char* op_name, void* const* outs,
                                 size_t num_outs, const void* const* sources, size_t num_sources,
                                 size_t count, int divisor, size_t blocks, size_t threads) {
  try {
    const DType dtype = parse_dtype(dtype_name);
    const ReduceOp op = parse_op(op_name);
    const ReduceArgs args = make_reduce_args(dtype, op, std::span(outs, num_outs),
                                             std::span(sources, num_sources), count, divisor);
    const RunBlocks run{args, blocks, threads};
    if (dtype == DType::f64) {
      visit_float<Plain<double>>(op, num_sources, run);
    } else {
      visit(dtype, op, num_sources, run);
    }
    return static_cast<long>(args.num_packs);
  } catch (const UsageError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return -1;
  }
}

}  // namespace hier::cuda
