// SGD's and LARS's block bodies on the CPU.
#pragma once

#include "cuda/lars_body.h"
#include "cuda/peer.h"
#include "host_blocks.h"

namespace hier::cuda {

// What sgd.cu does, on `num_blocks` blocks.
inline void host_sgd(std::span<const SgdTensor> tensors, DType dtype, const SgdStep& step,
                     uint16_t* copy, size_t num_blocks, size_t num_threads) {
  for (const SgdArgs& args : plan_sgd(tensors, dtype, step, copy)) {
    visit_float_element(dtype, [&]<class Element>() {
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

// What lars.cu does.
inline void host_lars(std::span<const LarsTensor> tensors, DType dtype, const SgdStep& step,
                      float* workspace, size_t num_blocks, size_t num_threads) {
  for (const LarsArgs& args : plan_lars(tensors, dtype, step, workspace)) {
    visit_float_element(dtype, [&]<class Element>() {
      const auto on_blocks = [&](const auto& body) {
        run_blocks(num_blocks, num_threads, [&](const HostCtx& ctx) {
          std::vector<Squares> shared(num_threads);
          body(ctx, shared.data());
        });
      };
      on_blocks(
          [&](const HostCtx& ctx, Squares* shared) { squares_block<Element>(ctx, args, shared); });
      on_blocks([&](const HostCtx& ctx, Squares* shared) { ratios_block(ctx, args, shared); });
      on_blocks([&](const HostCtx& ctx, Squares*) { lars_block<Element>(ctx, args); });
    });
  }
}

// The ranges of flat arrays.
inline std::vector<SgdTensor> tensors_of(float* parameters, float* momenta, const void* gradients,
                                         DType dtype, std::span<const SgdRange> ranges,
                                         double correction = 1) {
  std::vector<SgdTensor> tensors;
  size_t begin = 0;
  for (const SgdRange& range : ranges) {
    const void* at = static_cast<const char*>(gradients) + begin * size_of(dtype);
    tensors.push_back(
        {parameters + begin, momenta + begin, at, range.count, range.weight_decay, correction});
    begin += range.count;
  }
  return tensors;
}

}  // namespace hier::cuda
