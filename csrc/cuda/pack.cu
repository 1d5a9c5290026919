// The pack and unpack kernels, and the functions of pack.h.
#include "cuda/pack.h"

#include "cuda/grid.h"
#include "cuda/pack_body.h"

namespace hier::cuda {

template <bool kUnpack, class From, class To>
__global__ void __launch_bounds__(kThreads) pack_kernel(const __grid_constant__ PackArgs args) {
  pack_block<kUnpack, From, To>(DeviceCtx{}, args);
}

namespace {

template <bool kUnpack>
void launch(const std::vector<PackArgs>& launches, DType from, DType to, void* stream) {
  for (const PackArgs& args : launches) {
    if (args.ranges.num_chunks == 0) continue;
    const unsigned blocks = args.ranges.num_chunks;
    visit_float_element(from, [&]<class From>() {
      visit_float_element(to, [&]<class To>() {
        pack_kernel<kUnpack, From, To>
            <<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
      });
    });
    check_cuda(cudaGetLastError(), kUnpack ? "launching unpack" : "launching pack");
  }
}

}  // namespace

void pack(std::span<const Tensor> tensors, DType dtype, void* flat, DType flat_dtype, float scale,
          void* stream) {
  launch<false>(plan_pack(tensors, dtype, flat, flat_dtype, scale), dtype, flat_dtype, stream);
}

void unpack(std::span<const Tensor> tensors, DType dtype, const void* flat, DType flat_dtype,
            float scale, void* stream) {
  // The kernel of this direction reads flat only.
  void* read_only = const_cast<void*>(flat);
  launch<true>(plan_pack(tensors, dtype, read_only, flat_dtype, scale), flat_dtype, dtype, stream);
}

}  // namespace hier::cuda
