// How many blocks a kernel gets. Private to csrc/cuda.
#pragma once

#include <algorithm>

#include "cuda/device.h"

namespace hier::cuda {

constexpr unsigned kThreads = 256;
constexpr size_t kBlocksPerProcessor = 8;  // 2048 threads, all that a multiprocessor holds

// As many blocks as there is work for, but no more than run at once.
inline unsigned grid_of(size_t blocks_wanted) {
  return static_cast<unsigned>(std::min(kBlocksPerProcessor * num_processors(), blocks_wanted));
}

}  // namespace hier::cuda
