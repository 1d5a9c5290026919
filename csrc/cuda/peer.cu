// The kernels over memory that GPUs map from each other, and the functions of peer.h.
#include "cuda/peer.h"

#include "cuda/grid.h"
#include "cuda/peer_body.h"

namespace hier::cuda {

template <size_t kRanks, class Element>
__global__ void __launch_bounds__(kThreads)
    reduce_scatter_kernel(const __grid_constant__ PeerArgs args) {
  reduce_scatter_block<kRanks, Element>(DevicePeerCtx{}, args);
}

template <class Element>
__global__ void __launch_bounds__(kThreads)
    allgather_kernel(const __grid_constant__ PeerArgs args) {
  allgather_block<Element>(DevicePeerCtx{}, args);
}

template <size_t kRanks, class Element>
__global__ void __launch_bounds__(kThreads) fused_kernel(const __grid_constant__ PeerArgs args) {
  fused_block<kRanks, Element>(DevicePeerCtx{}, args);
}

size_t signals_bytes() { return sizeof(Signals); }

void reduce_scatter(const PeerGroup& group, std::span<void* const> inputs, DType dtype,
                    float* shard, size_t count, float scale, void* stream) {
  const PeerArgs args = plan_peer(group, inputs, {}, dtype, shard, count, scale);
  const unsigned blocks = num_peer_blocks(count, args.peers.num_ranks);
  const auto on = static_cast<cudaStream_t>(stream);
  visit_ranks(args.peers.num_ranks, [&]<size_t kRanks>() {
    visit_float_element(dtype, [&]<class Element>() {
      reduce_scatter_kernel<kRanks, Element><<<blocks, kThreads, 0, on>>>(args);
    });
  });
  check_cuda(cudaGetLastError(), "launching a reduce-scatter");
}

void allgather(const PeerGroup& group, const float* shard, std::span<void* const> outputs,
               DType dtype, size_t count, void* stream) {
  // The kernel reads the shard only.
  float* read_only = const_cast<float*>(shard);
  const PeerArgs args = plan_peer(group, {}, outputs, dtype, read_only, count, 1);
  const unsigned blocks = num_peer_blocks(count, args.peers.num_ranks);
  const auto on = static_cast<cudaStream_t>(stream);
  visit_float_element(dtype, [&]<class Element>() {
    allgather_kernel<Element><<<blocks, kThreads, 0, on>>>(args);
  });
  check_cuda(cudaGetLastError(), "launching an allgather");
}

void reduce_scatter_sgd_allgather(const PeerGroup& group, std::span<void* const> gradients,
                                  std::span<void* const> outputs, DType dtype, float* parameters,
                                  float* momenta, std::span<const SgdRange> ranges,
                                  const SgdStep& step, void* stream) {
  const auto launches =
      plan_fused(group, gradients, outputs, dtype, parameters, momenta, ranges, step);
  const unsigned blocks = num_peer_blocks(total(ranges), group.signals.size());
  const auto on = static_cast<cudaStream_t>(stream);
  for (const PeerArgs& args : launches) {
    visit_ranks(args.peers.num_ranks, [&]<size_t kRanks>() {
      visit_float_element(dtype, [&]<class Element>() {
        fused_kernel<kRanks, Element><<<blocks, kThreads, 0, on>>>(args);
      });
    });
    check_cuda(cudaGetLastError(), "launching a fused step of SGD");
  }
}

}  // namespace hier::cuda
