// SGD's block bodies on the CPU.
#pragma once

#include "cuda/sgd_body.h"
#include "host_blocks.h"

namespace hier::cuda {

// What sgd.cu does, on `num_blocks` blocks.
inline void host_sgd(const SgdArrays& arrays, std::span<const SgdRange> ranges, const SgdStep& step,
                     size_t num_blocks, size_t num_threads) {
  for (const SgdArgs& args : plan_sgd(arrays, ranges, step)) {
    visit_float_element(arrays.gradient_dtype, [&]<class Element>() {
      run_blocks(num_blocks, num_threads, [&](const HostCtx& ctx) {
        if (step.form == SgdForm::absorbed) {
          sgd_block<Absorbed, Element>(ctx, args);
        } else {
          sgd_block<Reference, Element>(ctx, args);
        }
      });
    });
  }
}

}  // namespace hier::cuda
