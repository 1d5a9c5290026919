// The arguments of the kernels of peer.h.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/barrier_body.h"
#include "cuda/peer.h"
#include "cuda/sgd_args.h"

namespace hier::cuda {

struct PeerArgs {
  Peers peers;
  const void* inputs[kMaxRanks];
  void* outputs[kMaxRanks];
  size_t begin;   // of the shard, in inputs and outputs
  Ranges ranges;  // of the shard
  float decays[kMaxRanges];
  float* shard;    // parameters, or sums
  float* momenta;  // null if momentum is 0
  SgdRates rates;
};
static_assert(sizeof(PeerArgs) <= 4096, "more than a kernel takes as its arguments");

// The same on all ranks, or a block would wait for one that there is not.
inline unsigned num_peer_blocks(size_t count, size_t num_ranks) {
  const size_t chunks = (shard_of(count, num_ranks, 0).end + kChunk - 1) / kChunk;
  return static_cast<unsigned>(std::clamp<size_t>(chunks, 1, kMaxPeerBlocks));
}

inline Peers make_peers(const PeerGroup& group) {
  const size_t num_ranks = group.signals.size();
  if (num_ranks < 2 || num_ranks > kMaxRanks || group.rank >= num_ranks) {
    throw UsageError("a group of GPUs has 2 to " + std::to_string(kMaxRanks) + " ranks, not rank " +
                     std::to_string(group.rank) + " of " + std::to_string(num_ranks));
  }
  if (!(group.timeout_seconds > 0 && group.timeout_seconds < 1e9)) {
    throw UsageError("timeout must be above 0 seconds, and below 1e9");
  }
  Peers peers{};
  for (size_t r = 0; r < num_ranks; ++r) {
    check_aligned(group.signals[r], sizeof(Flag));
    peers.signals[r] = static_cast<Signals*>(group.signals[r]);
  }
  peers.num_ranks = num_ranks;
  peers.rank = group.rank;
  peers.timeout_ns = static_cast<uint64_t>(group.timeout_seconds * 1e9);
  return peers;
}

// Checks and copies the arrays of all ranks; `none` of them is fine.
template <class Pointer>
void take_arrays(std::span<void* const> arrays, DType dtype, const Peers& peers,
                 Pointer (&into)[kMaxRanks]) {
  if (!arrays.empty() && arrays.size() != peers.num_ranks) {
    throw UsageError("one array for each of the " + std::to_string(peers.num_ranks) +
                     " ranks is needed, not " + std::to_string(arrays.size()));
  }
  for (size_t r = 0; r < arrays.size(); ++r) {
    check_aligned(arrays[r], size_of(dtype));
    into[r] = arrays[r];
  }
}

// Where all arrays of a shard have a 16-byte boundary, from its begin on.
inline uint8_t shard_head(const PeerArgs& args, DType dtype) {
  std::vector<Array> arrays{{args.shard, sizeof(float)}, {args.momenta, sizeof(float)}};
  for (size_t r = 0; r < kMaxRanks; ++r) {
    for (const void* array : {args.inputs[r], static_cast<const void*>(args.outputs[r])}) {
      if (array == nullptr) continue;
      const void* first = static_cast<const char*>(array) + args.begin * size_of(dtype);
      arrays.push_back({first, size_of(dtype)});
    }
  }
  return find_head(arrays);
}

// A shard's part of reduce_scatter or allgather.
inline PeerArgs plan_peer(const PeerGroup& group, std::span<void* const> inputs,
                          std::span<void* const> outputs, DType dtype, float* shard, size_t count,
                          float scale) {
  check_float(dtype, "arrays of a group");
  check_aligned(shard, sizeof(float));
  PeerArgs args{};
  args.peers = make_peers(group);
  take_arrays(inputs, dtype, args.peers, args.inputs);
  take_arrays(outputs, dtype, args.peers, args.outputs);
  const Shard part = shard_of(count, args.peers.num_ranks, group.rank);
  args.begin = part.begin;
  args.shard = shard;
  args.rates.scale = scale;
  args.ranges.add(part.end - part.begin, shard_head(args, dtype));
  return args;
}

// What of the ranges lies in the shard.
inline std::vector<SgdRange> cut_to(const Shard& shard, std::span<const SgdRange> ranges) {
  std::vector<SgdRange> cut;
  size_t begin = 0;
  for (const SgdRange& range : ranges) {
    const size_t end = begin + range.count;
    const size_t from = std::max(begin, shard.begin), to = std::min(end, shard.end);
    if (from < to) cut.push_back({to - from, range.weight_decay});
    begin = end;
  }
  return cut;
}

inline size_t total(std::span<const SgdRange> ranges) {
  size_t count = 0;
  for (const SgdRange& range : ranges) count += range.count;
  return count;
}

// One element of the result is one launch; there are as many on each rank, since each has barriers.
inline std::vector<PeerArgs> plan_fused(const PeerGroup& group, std::span<void* const> gradients,
                                        std::span<void* const> outputs, DType dtype,
                                        float* parameters, float* momenta,
                                        std::span<const SgdRange> ranges, const SgdStep& step) {
  if (step.form != SgdForm::reference) {
    throw UsageError("SGD between a reduce-scatter and an allgather has the reference form only");
  }
  const size_t count = total(ranges);
  PeerArgs args = plan_peer(group, gradients, outputs, dtype, parameters, count, 1);
  check_momenta(parameters, momenta, step.momentum);
  args.momenta = step.momentum > 0 ? momenta : nullptr;
  args.rates = make_rates(step);
  args.ranges = Ranges{};
  size_t most = 1;
  for (size_t rank = 0; rank < args.peers.num_ranks; ++rank) {
    const size_t cuts = cut_to(shard_of(count, args.peers.num_ranks, rank), ranges).size();
    most = std::max(most, (cuts + kMaxRanges - 1) / kMaxRanges);
  }
  std::vector<PeerArgs> launches(most, args);
  const uint8_t shard_begin = shard_head(args, dtype);
  size_t end = 0, next = 0;
  for (const SgdRange& range : cut_to(shard_of(count, args.peers.num_ranks, group.rank), ranges)) {
    PeerArgs& launch = launches[next++ / kMaxRanges];
    if (launch.ranges.num_ranges == 0) launch.ranges.begin = end;
    const auto head = static_cast<uint8_t>((shard_begin - end) % kGroup);
    launch.decays[launch.ranges.num_ranges] = static_cast<float>(range.weight_decay);
    launch.ranges.add(range.count, shard_begin == kNoGroups ? kNoGroups : head);
    end += range.count;
  }
  return launches;
}

}  // namespace hier::cuda
