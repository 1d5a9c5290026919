// The block bodies of pack and unpack on the CPU.
#pragma once

#include "cuda/pack_body.h"
#include "host_blocks.h"

namespace hier::cuda {

// What pack.cu does, on `num_blocks` blocks.
inline void host_pack(bool unpack, std::span<const Tensor> tensors, DType dtype, void* flat,
                      DType flat_dtype, float scale, size_t num_blocks, size_t num_threads) {
  for (const PackArgs& args : plan_pack(tensors, dtype, flat, flat_dtype, scale)) {
    visit_float_element(dtype, [&]<class Element>() {
      visit_float_element(flat_dtype, [&]<class Flat>() {
        run_blocks(num_blocks, num_threads, [&](const HostCtx& ctx) {
          if (unpack) {
            pack_block<true, Flat, Element>(ctx, args);
          } else {
            pack_block<false, Element, Flat>(ctx, args);
          }
        });
      });
    });
  }
}

}  // namespace hier::cuda
