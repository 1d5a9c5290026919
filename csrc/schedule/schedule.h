// A schedule says who sends which chunks to whom, round by round. It is plain data: it knows no
// bytes, dtype, socket, device or time. Engine, simulator, cost model, checks and pictures read it.
//
// Its laws:
//  1. A round reads before it writes. Rounds are no barriers: they only order reads and writes.
//  2. Moves of one round into the same chunk of the same rank all reduce, in list order.
//  3. Chunk c covers elements [bound(c), bound(c+1)); empty chunks vanish, any count works.
//  4. Messages of a pair of ranks travel in list order: the schedule is the wire protocol.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "schedule/collective.h"

namespace hier {

// Chunks [lo, hi) travel from src to dst; there they overwrite, or are reduced into, dst's own.
// A Move is both the send and its receive, so an unmatched message cannot be written down.
struct Move {
  int src, dst, lo, hi;
  bool reduce;
  bool operator==(const Move&) const = default;
};

using Round = std::vector<Move>;  // every move of a round reads the state before the round

struct Schedule {
  int world_size = 1;
  int num_chunks = 1;
  std::vector<Round> rounds;
  bool operator==(const Schedule&) const = default;
};

// Composition.
Schedule then(Schedule first, const Schedule& second);  // first, then second
Schedule refine(Schedule schedule, int factor);         // each chunk becomes `factor` chunks
Schedule relabel(const Schedule& schedule, const std::vector<int>& new_chunk);  // renames chunks
Schedule reversed(const Schedule& reduce_scatter);  // the allgather that undoes it
// Runs `sub` among `ranks` from first_round and first_chunk on.
void overlay(Schedule& schedule, size_t first_round, const Schedule& sub,
             const std::vector<int>& ranks, int first_chunk);

// "" if the schedule keeps its promise on symbolic contributions, else the first thing wrong.
std::string check(const Schedule& schedule, Collective collective, int root = 0);

}  // namespace hier
