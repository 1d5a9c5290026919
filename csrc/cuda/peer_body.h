// The block bodies over memory that 2 to 8 GPUs map from each other: reduce-scatter, allgather, and
// both with SGD between them. Each begins with a barrier, so that all ranks' arrays are ready, and
// ends with one, so that no rank's next kernel changes what another still reads, or reads what has
// not come yet.
#pragma once

#include "cuda/peer_args.h"
#include "cuda/sgd_body.h"

namespace hier::cuda {

HIER_DEVICE float add(float a, float b) { return plus(a, b); }

HIER_DEVICE Eight add(const Eight& a, const Eight& b) {
  Eight sum;
#pragma unroll
  for (size_t k = 0; k < kGroup; ++k) sum.lane[k] = plus(a.lane[k], b.lane[k]);
  return sum;
}

// In canonical tree order: a power of two is halved, another number split behind its highest one.
template <size_t kRanks, class Unit>
HIER_DEVICE Unit tree_sum(const Unit* units) {
  if constexpr (kRanks == 1) {
    return units[0];
  } else {
    constexpr size_t kLeft = kRanks <= 2 ? 1 : kRanks <= 4 ? 2 : 4;  // kMaxRanks = 8
    return add(tree_sum<kLeft>(units), tree_sum<kRanks - kLeft>(units + kLeft));
  }
}

// The sum of all ranks' values at one place, all loads in flight.
template <size_t kRanks, class Unit, class Load>
HIER_DEVICE Unit sum_of_ranks(const Load& load) {
  Unit units[kRanks];
#pragma unroll
  for (size_t r = 0; r < kRanks; ++r) units[r] = load(r);
  return tree_sum<kRanks>(units);
}

// Calls eight(spot, sums) and one(i, sum) for this thread's part of a chunk of the shard.
template <size_t kRanks, class Element, class Eights, class Ones>
HIER_DEVICE void walk_sums(const PeerArgs& args, const Chunk& chunk, size_t thread,
                           size_t num_threads, const Eights& eight, const Ones& one) {
  walk(
      chunk, thread, num_threads,
      [&](const Spot& spot) {
        eight(spot, sum_of_ranks<kRanks, Eight>([&](size_t r) {
                return load_eight<Element>(args.inputs[r], spot.behind(args.begin));
              }));
      },
      [&](size_t i) {
        one(i, sum_of_ranks<kRanks, float>(
                   [&](size_t r) { return load_one<Element>(args.inputs[r], args.begin + i); }));
      });
}

// The own rank last: the peers' links start at different peers.
template <class Store>
HIER_DEVICE void for_each_rank(const Peers& peers, const Store& store) {
  for (size_t k = 1; k <= peers.num_ranks; ++k) {
    const size_t sum = peers.rank + k;
    store(sum < peers.num_ranks ? sum : sum - peers.num_ranks);
  }
}

// Writes to all ranks' outputs.
template <class Element>
struct Push {
  const PeerArgs& args;
  HIER_DEVICE void operator()(const Spot& spot, const Eight& values) const {
    const Spot all = spot.behind(args.begin);
    for_each_rank(args.peers,
                  [&](size_t r) { store_eight<Element>(args.outputs[r], all, values); });
  }
  HIER_DEVICE void operator()(size_t i, float value) const {
    for_each_rank(args.peers,
                  [&](size_t r) { store_one<Element>(args.outputs[r], args.begin + i, value); });
  }
};

// Calls work(thread, chunk) for the chunks of this block, between two barriers.
template <class Ctx, class Work>
HIER_DEVICE void between_barriers(const Ctx& ctx, const PeerArgs& args, const Work& work) {
  if (!barrier(ctx, args.peers)) return;
  ctx.phase([&](size_t thread) {
    const Ranges& ranges = args.ranges;
    for (size_t at = ctx.block(); at < ranges.num_chunks; at += ctx.num_blocks()) {
      work(thread, chunk_at(ranges, at));
    }
  });
  barrier(ctx, args.peers);
}

template <size_t kRanks, class Element, class Ctx>
HIER_DEVICE void reduce_scatter_block(const Ctx& ctx, const PeerArgs& args) {
  between_barriers(ctx, args, [&](size_t thread, const Chunk& chunk) {
    walk_sums<kRanks, Element>(
        args, chunk, thread, ctx.num_threads(),
        [&](const Spot& spot, Eight sums) {
#pragma unroll
          for (float& lane : sums.lane) lane = times(lane, args.rates.scale);
          store_eight<Plain<float>>(args.shard, spot, sums);
        },
        [&](size_t i, float sum) { args.shard[i] = times(sum, args.rates.scale); });
  });
}

template <class Element, class Ctx>
HIER_DEVICE void allgather_block(const Ctx& ctx, const PeerArgs& args) {
  const Push<Element> push{args};
  between_barriers(ctx, args, [&](size_t thread, const Chunk& chunk) {
    walk(
        chunk, thread, ctx.num_threads(),
        [&](const Spot& spot) { push(spot, load_eight<Plain<float>>(args.shard, spot)); },
        [&](size_t i) { push(i, args.shard[i]); });
  });
}

template <size_t kRanks, class Element, class Ctx>
HIER_DEVICE void fused_block(const Ctx& ctx, const PeerArgs& args) {
  const Push<Element> push{args};
  between_barriers(ctx, args, [&](size_t thread, const Chunk& chunk) {
    const SgdPlace place{args.shard, args.momenta, args.decays[chunk.range], args.rates.momentum,
                         1.0f};
    walk_sums<kRanks, Element>(
        args, chunk, thread, ctx.num_threads(),
        [&](const Spot& spot, const Eight& sums) {
          push(spot, update_eight<Reference>(args.rates, place, spot, sums));
        },
        [&](size_t i, float sum) { push(i, update_one<Reference>(args.rates, place, i, sum)); });
  });
}

// Calls run.template operator()<kRanks>().
template <size_t kRanks = kMaxRanks, class Run>
void visit_ranks(size_t num_ranks, const Run& run) {
  if constexpr (kRanks > 2) {
    if (num_ranks < kRanks) return visit_ranks<kRanks - 1>(num_ranks, run);
  }
  run.template operator()<kRanks>();
}

}  // namespace hier::cuda
