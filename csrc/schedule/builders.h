// The generators that build() and hierarchical() combine; private to this directory and its
// bindings.
#pragma once

#include <string>
#include <vector>

#include "schedule/schedule.h"

namespace hier {

// One digit of a rank in mixed radix. The ranks that differ in this digit alone exchange parts
// either directly (one round) or around a ring (radix - 1 rounds).
enum class Exchange { direct, ring };
struct Level {
  int radix;
  Exchange exchange = Exchange::direct;
};

// A reduce-scatter whose messages are contiguous, and the chunk that each rank ends with.
struct Scatter {
  Schedule schedule;
  std::vector<int> chunk_of_rank;
};

// A power-of-two run of ranks [first, first + size).
struct Block {
  int first, size;
};

// The binary digits of world_size as runs of ranks, largest first: 7 = [0,4) [4,6) [6,7).
std::vector<Block> binary_blocks(int world_size);

Scatter radix_reduce_scatter(const std::vector<Level>& levels);
Schedule owner_order(const Scatter& scatter);  // relabelled: rank r ends with chunk r
std::vector<Level> bcube_levels(int world_size);
std::vector<Level> torus_levels(int world_size);
Schedule circulant_reduce_scatter(int world_size);

Schedule halving_doubling(int world_size);
Schedule recursive_doubling(int world_size);

// Along the canonical tree. Rank owners[c] ends with the finished chunk c.
Schedule tree_reduce_scatter(int world_size, const std::vector<int>& owners);
Schedule tree_reduce(int world_size, int root);
Schedule tree_gather(int world_size, int root);
Schedule direct_gather(int world_size, int root);
Schedule dissemination(int world_size);
Schedule pairwise_exchange(int world_size);

// "" if every move names ranks and chunks that exist and no round breaks law 2.
std::string malformed(const Schedule& schedule);

std::string describe(const Move& move);  // "3+>1[4-5]": + reduces, = copies, as in the pictures

// Joins a move to the one before it, if that carries the neighbouring chunk the same way.
void append(Round& round, const Move& move);

}  // namespace hier
