// Collectives of 2 to 8 GPUs over memory that they map from each other. All ranks call the same
// function with the same counts; each works on its own shard (see shard_of). Asynchronous on
// `stream`; whether a call failed is in the signals (barrier_body.h) once the stream is done. All
// pointers are those of this process: of the own rank's memory and of the peers' as mapped here.
// Throws UsageError and CudaError.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "cuda/alignment.h"
#include "cuda/sgd.h"

namespace hier::cuda {

// Bytes of a rank's signals, zeroed before the first call.
size_t signals_bytes();

struct PeerGroup {
  std::span<void* const> signals;  // of each rank
  size_t rank;
  double timeout_seconds;  // of each wait for a peer
};

struct Shard {
  size_t begin, end;
};

// Rank r owns the r-th part of the array; parts are multiples of 8 elements, but for the last.
inline Shard shard_of(size_t count, size_t num_ranks, size_t rank) {
  const size_t groups = (count + kGroup - 1) / kGroup;
  const size_t size = (groups + num_ranks - 1) / num_ranks * kGroup;
  return {std::min(count, rank * size), std::min(count, (rank + 1) * size)};
}

// shard[i] = scale * (the sum of inputs[.][begin + i] of all ranks, in f32, in tree order).
void reduce_scatter(const PeerGroup& group, std::span<void* const> inputs, DType dtype,
                    float* shard, size_t count, float scale, void* stream);

// outputs[.][begin + i] = shard[i] on all ranks, rounded to dtype.
void allgather(const PeerGroup& group, const float* shard, std::span<void* const> outputs,
               DType dtype, size_t count, void* stream);

// Of an array, from its beginning or where the range before it ends.
struct SgdRange {
  size_t count;
  double weight_decay;
};

// reduce_scatter of the gradients, one step of SGD on the shard, allgather of the parameters, in
// one pass. parameters and momenta are this rank's shard, in f32. ranges are those of the whole
// array. step.scale multiplies the
// sum.
void reduce_scatter_sgd_allgather(const PeerGroup& group, std::span<void* const> gradients,
                                  std::span<void* const> outputs, DType dtype, float* parameters,
                                  float* momenta, std::span<const SgdRange> ranges,
                                  const SgdStep& step, void* stream);

}  // namespace hier::cuda
