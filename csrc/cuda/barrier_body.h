// The barrier between the blocks of the same number on all ranks' GPUs, over flags in memory that
// the ranks map from each other. No kernel traps: who waits in vain leaves with an error word.
#pragma once

#include "cuda/peer_context.h"

namespace hier::cuda {

constexpr size_t kMaxRanks = 8, kMaxPeerBlocks = 64;

// One per rank, in its own memory, zero at first. After an error the epochs of the ranks differ:
// all ranks zero their Signals together, or use them no more.
struct Signals {
  // [epoch & 1][block][peer] is written by that block of that peer alone. Two slots: a peer can be
  // one barrier ahead, and no more, since there it waits for this rank.
  Flag arrived[2][kMaxPeerBlocks][kMaxRanks];
  Flag epochs[kMaxPeerBlocks]
             [kMaxRanks];  // barriers so far; of the thread that is called as the peer
  Flag abort;              // not 0: nobody waits any more; written by anyone
  Flag error;              // 0, or why this rank left: see below; read by the host
};

constexpr Flag kErrorAborted = 255;  // the abort word was set
constexpr Flag kErrorAbsent = 1;     // + r: rank r was not there by the deadline

struct Peers {
  Signals* signals[kMaxRanks];
  size_t num_ranks, rank;
  uint64_t timeout_ns;
};

// The first error stays: who is told to stop does not hide why, since the abort words are released
// after it. Of errors at the same time, any one.
template <class Ctx>
HIER_DEVICE bool fail(const Ctx& ctx, const Peers& peers, Flag error) {
  Flag* mine = &peers.signals[peers.rank]->error;
  if (ctx.load_relaxed(mine) == 0) ctx.store_relaxed(mine, error);
#pragma unroll 1
  for (size_t peer = 0; peer < peers.num_ranks; ++peer) {
    ctx.store_release(&peers.signals[peer]->abort, 1);
  }
  return false;
}

// True if `peer` has come to this barrier.
template <class Ctx>
HIER_DEVICE bool await(const Ctx& ctx, const Peers& peers, size_t peer) {
  Signals& mine = *peers.signals[peers.rank];
  const Flag epoch = mine.epochs[ctx.block()][peer];
  Flag* flag = &mine.arrived[epoch & 1][ctx.block()][peer];
  const uint64_t start = ctx.now_ns();
  // Acquire: what the peer wrote before its release is read after this.
  while (ctx.load_acquire(flag) != epoch) {
    if (ctx.load_acquire(&mine.abort) != 0) return fail(ctx, peers, kErrorAborted);
    if (ctx.now_ns() - start > peers.timeout_ns) {
      return fail(ctx, peers, kErrorAbsent + static_cast<Flag>(peer));
    }
    ctx.relax();
  }
  return true;
}

// True if all ranks' blocks of this number have come; then what they wrote before is read after.
// All threads get the same answer. On false the body returns: its results are void.
template <class Ctx>
HIER_DEVICE bool barrier(const Ctx& ctx, const Peers& peers) {
  const auto is_peer = [&](size_t thread) {
    return thread < peers.num_ranks && thread != peers.rank;
  };
  ctx.sync();  // the release covers the writes of all threads of the block
  ctx.phase([&](size_t thread) {
    if (!is_peer(thread)) return;
    const Flag epoch = ++peers.signals[peers.rank]->epochs[ctx.block()][thread];
    ctx.store_release(&peers.signals[thread]->arrived[epoch & 1][ctx.block()][peers.rank], epoch);
  });
  return !ctx.any([&](size_t thread) { return is_peer(thread) && !await(ctx, peers, thread); });
}

}  // namespace hier::cuda
