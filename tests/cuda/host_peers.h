// Virtual ranks on the CPU: each block of each rank is a thread, and a kernel ends when all blocks
// of its rank have.
#pragma once

#include <functional>

#include "cuda/peer_body.h"
#include "host_blocks.h"

namespace hier::cuda {

// The flags without the order that they give.
struct RelaxedCtx : HostPeerCtx {
  static void store_release(Flag* flag, Flag value) { store_relaxed(flag, value); }
  static Flag load_acquire(Flag* flag) { return load_relaxed(flag); }
};

// Leaves out the kSkipped-th barrier of a kernel.
template <int kSkipped>
struct SkippingCtx : HostPeerCtx {
  mutable int barriers = 0;
};

template <int kSkipped>
bool barrier(const SkippingCtx<kSkipped>& ctx, const Peers& peers) {
  if (ctx.barriers++ == kSkipped) return true;
  return barrier(static_cast<const HostPeerCtx&>(ctx), peers);
}

// What the kernels do, for one rank, with any context.
template <class Ctx>
struct HostRank {
  PeerGroup group;
  size_t num_blocks, num_threads;

  template <class Body>
  void run(const Body& body) const {
    run_blocks(num_blocks, num_threads, [&](const HostCtx& plain) {
      Ctx ctx;
      static_cast<HostCtx&>(ctx) = plain;
      body(ctx);
    });
  }

  void reduce_scatter(std::span<void* const> inputs, DType dtype, float* shard, size_t count,
                      float scale) const {
    const PeerArgs args = plan_peer(group, inputs, {}, dtype, shard, count, scale);
    visit_ranks(args.peers.num_ranks, [&]<size_t kRanks>() {
      visit_float_element(dtype, [&]<class Element>() {
        run([&](const Ctx& ctx) { reduce_scatter_block<kRanks, Element>(ctx, args); });
      });
    });
  }

  void allgather(float* shard, std::span<void* const> outputs, DType dtype, size_t count) const {
    const PeerArgs args = plan_peer(group, {}, outputs, dtype, shard, count, 1);
    visit_float_element(dtype, [&]<class Element>() {
      run([&](const Ctx& ctx) { allgather_block<Element>(ctx, args); });
    });
  }

  void fused(std::span<void* const> gradients, std::span<void* const> outputs, DType dtype,
             float* parameters, float* momenta, std::span<const SgdRange> ranges,
             const SgdStep& step) const {
    for (const PeerArgs& args :
         plan_fused(group, gradients, outputs, dtype, parameters, momenta, ranges, step)) {
      visit_ranks(args.peers.num_ranks, [&]<size_t kRanks>() {
        visit_float_element(dtype, [&]<class Element>() {
          run([&](const Ctx& ctx) { fused_block<kRanks, Element>(ctx, args); });
        });
      });
    }
  }
};

// Runs rank(r) for all ranks at once.
inline void run_ranks(size_t num_ranks, const std::function<void(size_t)>& rank) {
  std::vector<std::jthread> ranks;
  for (size_t r = 0; r < num_ranks; ++r) ranks.emplace_back([&, r] { rank(r); });
}

}  // namespace hier::cuda
