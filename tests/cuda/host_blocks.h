// Runs a block body on the CPU, each block as a thread of its own: the GPU runs them in any order.
#pragma once

#include <thread>
#include <vector>

#include "cuda/context.h"

namespace hier::cuda {

template <class Body>
void run_blocks(size_t num_blocks, size_t num_threads, const Body& body) {
  std::vector<std::jthread> blocks;
  for (size_t block = 0; block < num_blocks; ++block) {
    blocks.emplace_back([&, block] { body(HostCtx{block, num_blocks, num_threads}); });
  }
}

}  // namespace hier::cuda
