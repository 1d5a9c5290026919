// The table of collectives.
#include "schedule/collective.h"

#include <algorithm>

namespace hier {
namespace {

using enum Chunks;
using C = Collective;
using H = Holders;

// clang-format off
constexpr CollectiveInfo kCollectives[] = {
    //                                    reduces rooted chunks    before     after
    {C::allreduce,      "allreduce",      true,  false, any,      H::all,    H::all,
     "All ranks end with the sum over all ranks."},
    {C::reduce_scatter, "reduce_scatter", true,  false, per_rank, H::all,    H::owner,
     "Rank r ends with chunk r of the sum; its other chunks are scratch."},
    {C::allgather,      "allgather",      false, false, per_rank, H::owner,  H::all,
     "Rank r starts with chunk r; all ranks end with all chunks."},
    {C::broadcast,      "broadcast",      false, true,  any,      H::root,   H::all,
     "All ranks end with the root's data."},
    {C::reduce,         "reduce",         true,  true,  any,      H::all,    H::root,
     "The root ends with the sum; the buffers of the others are scratch."},
    {C::gather,         "gather",         false, true,  per_rank, H::owner,  H::root,
     "Rank r starts with chunk r; the root ends with all chunks. Its peers' other chunks are "
     "scratch."},
    {C::scatter,        "scatter",        false, true,  per_rank, H::root,   H::owner,
     "The root starts with all chunks; rank r ends with chunk r. Its other chunks are scratch."},
    {C::alltoall,       "alltoall",       false, false, per_pair, H::source, H::target,
     "Rank r starts with chunks r p + i, for all i; rank i ends with them. No rank has a buffer of "
     "all p^2 chunks, only of the p that it sends and the p that it receives: n is p chunks here."},
    {C::barrier,        "barrier",        false, false, any,      H::all,    H::all,
     "No rank leaves before all have entered."},
};
// clang-format on
constexpr CollectiveInfo kUnknown{{}, "unknown collective", false, false, any, H::all, H::all, ""};

}  // namespace

std::span<const CollectiveInfo> collectives() { return kCollectives; }

const CollectiveInfo& info(Collective collective) {
  const auto* row = std::ranges::find(kCollectives, collective, &CollectiveInfo::collective);
  return row == std::end(kCollectives) ? kUnknown : *row;
}

bool holds(Holders holders, int rank, int chunk, int root, int world_size) {
  switch (holders) {
    case Holders::all:
      return true;
    case Holders::owner:
      return rank == chunk;
    case Holders::root:
      return rank == root;
    case Holders::source:
      return rank == chunk / world_size;
    case Holders::target:
      return rank == chunk % world_size;
  }
  return false;
}

int source_of(const CollectiveInfo& info, int chunk, int root, int world_size) {
  switch (info.before) {
    case Holders::owner:
      return chunk;
    case Holders::root:
      return root;
    case Holders::source:
      return chunk / world_size;
    default:
      return -1;
  }
}

int num_chunks_of(Chunks chunks, int world_size) {
  return chunks == any ? 0 : chunks == per_rank ? world_size : world_size * world_size;
}

}  // namespace hier
