// Memory for what cannot be worked on in place.
#pragma once

#include <ATen/ATen.h>
#include <sys/mman.h>

#include <cstdint>

namespace hier::torch_backend {

// Large buffers are new to the process every time; with pages of 4 KiB, to touch them for the first
// time takes several times longer than to fill them.
inline at::Tensor staging(at::IntArrayRef sizes, const at::TensorOptions& options) {
  constexpr uintptr_t kHugePage = 2 << 20;
  at::Tensor buffer = at::empty(sizes, options);
  if (!buffer.is_cpu()) return buffer;
  const auto begin = reinterpret_cast<uintptr_t>(buffer.data_ptr());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (begin + buffer.nbytes()) / kHugePage * kHugePage;
  // A wish: kernels without huge pages refuse it, and nothing is lost.
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
  return buffer;
}

}  // namespace hier::torch_backend
