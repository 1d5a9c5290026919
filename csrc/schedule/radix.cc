// Mixed radix: ring, torus, bcube, direct exchange and recursive halving are one generator.
#include <bit>
#include <numeric>

#include "schedule/builders.h"

namespace hier {
namespace {

// Where one level stands: its ranks are `distance` apart, and each rank's span of chunks is cut
// into `radix` parts of `part` chunks. A rank keeps the part that its digit names.
struct Cut {
  int radix, distance, part;
  int digit(int rank) const { return rank / distance % radix; }
  int peer(int rank, int digit_of_peer) const {
    return rank + (digit_of_peer - digit(rank)) * distance;
  }
  Move send(int rank, int to_digit, int part_index, int span_begin) const {
    const int lo = span_begin + part_index * part;
    return {rank, peer(rank, to_digit), lo, lo + part, true};
  }
};

// Staggered: digit g sends to g+1, g+2, ... so that no receiver is everyone's first; and so does
// the way back, which keeps the list order: distances outside, ranks inside.
void direct_level(const Cut& cut, const std::vector<int>& span_begin, Schedule& schedule) {
  if (cut.radix == 1) return;
  Round& round = schedule.rounds.emplace_back();
  for (int d = 1; d < cut.radix; ++d)
    for (int r = 0; r < schedule.world_size; ++r) {
      const int to = (cut.digit(r) + d) % cut.radix;
      round.push_back(cut.send(r, to, to, span_begin[static_cast<size_t>(r)]));
    }
}

// In round t digit g passes part g-1-t on to g+1, which adds its own: part g comes home last.
void ring_level(const Cut& cut, const std::vector<int>& span_begin, Schedule& schedule) {
  for (int t = 0; t < cut.radix - 1; ++t) {
    Round& round = schedule.rounds.emplace_back();
    for (int r = 0; r < schedule.world_size; ++r) {
      const int digit = cut.digit(r), part = (digit - 1 - t + 2 * cut.radix) % cut.radix;
      const int to = (digit + 1) % cut.radix;
      round.push_back(cut.send(r, to, part, span_begin[static_cast<size_t>(r)]));
    }
  }
}

Scatter halving(int size) {
  return radix_reduce_scatter(
      std::vector<Level>(static_cast<size_t>(std::countr_zero(unsigned(size))), Level{2}));
}

std::vector<int> ranks_of(const Block& block) {
  std::vector<int> ranks(static_cast<size_t>(block.size));
  std::iota(ranks.begin(), ranks.end(), block.first);
  return ranks;
}

}  // namespace

// Near-first: the first level pairs neighbours, and the largest messages travel the shortest way.
Scatter radix_reduce_scatter(const std::vector<Level>& levels) {
  int world_size = 1;
  for (const Level& level : levels) world_size *= level.radix;
  Scatter scatter{{world_size, world_size, {}}, std::vector<int>(static_cast<size_t>(world_size))};

  std::vector<int>& span_begin = scatter.chunk_of_rank;
  Cut cut{1, 1, world_size};
  for (const Level& level : levels) {
    cut = {level.radix, cut.distance * cut.radix, cut.part / level.radix};
    if (level.exchange == Exchange::ring)
      ring_level(cut, span_begin, scatter.schedule);
    else
      direct_level(cut, span_begin, scatter.schedule);
    for (int r = 0; r < world_size; ++r)
      span_begin[static_cast<size_t>(r)] += cut.digit(r) * cut.part;
  }
  return scatter;
}

Schedule owner_order(const Scatter& scatter) {
  std::vector<int> owner(scatter.chunk_of_rank.size());
  for (size_t r = 0; r < owner.size(); ++r)
    owner[static_cast<size_t>(scatter.chunk_of_rank[r])] = static_cast<int>(r);
  return relabel(scatter.schedule, owner);
}

// Fours, then a two, then the odd primes: few rounds, and few messages in each.
std::vector<Level> bcube_levels(int world_size) {
  std::vector<Level> levels;
  for (int rest = world_size, factor = 4; rest > 1;) {
    while (rest % factor == 0) {
      levels.push_back({factor});
      rest /= factor;
    }
    factor = factor == 4 ? 2 : factor == 2 ? 3 : factor + 2;
  }
  return levels;
}

// Two rings, as near to a square as the world size allows; a prime is one ring.
std::vector<Level> torus_levels(int world_size) {
  int width = 1;
  for (int d = 1; d * d <= world_size; ++d)
    if (world_size % d == 0) width = d;
  std::vector<Level> levels;
  for (int radix : {world_size / width, width})
    if (radix > 1) levels.push_back({radix, Exchange::ring});
  return levels;
}

std::vector<Block> binary_blocks(int world_size) {
  std::vector<Block> blocks;
  for (int first = 0; first < world_size;) {
    const int size = static_cast<int>(std::bit_floor(unsigned(world_size - first)));
    blocks.push_back({first, size});
    first += size;
  }
  return blocks;
}

// Recursive halving and doubling (Goyal et al. 2017, section 4; binary blocks: Rabenseifner 2004).
// Each block halves by itself, 0 with 1, 2 with 3, then at distance 2, 4, ... In the last round of
// a block, the next smaller block, which is done by then, adds its sum to it: rank q of the block
// hears from rank q mod size of the smaller one. The list order puts that sum behind the block's
// own, so every element is added along tree(p) = tree(largest power of two) + tree(the rest).
// The doubling is the way back.
Schedule halving_doubling(int world_size) {
  const std::vector<Block> blocks = binary_blocks(world_size);
  const int num_chunks = blocks.front().size;
  Schedule result{world_size, num_chunks, {}};
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Block& block = blocks[i];
    const int width = num_chunks / block.size;
    const Scatter part = halving(block.size);
    overlay(result, 0, refine(part.schedule, width), ranks_of(block), 0);
    if (i + 1 == blocks.size()) break;
    const Block& smaller = blocks[i + 1];
    for (int q = 0; q < block.size; ++q) {
      const int lo = part.chunk_of_rank[static_cast<size_t>(q)] * width;
      result.rounds[part.schedule.rounds.size() - 1].push_back(
          {smaller.first + q % smaller.size, block.first + q, lo, lo + width, true});
    }
  }
  return then(result, reversed(result));
}

// Whole buffers, each round at twice the distance; the blocks and their order are those of
// halving_doubling. The ranks beyond the largest block get the finished buffer in a last round.
Schedule recursive_doubling(int world_size) {
  const std::vector<Block> blocks = binary_blocks(world_size);
  const int largest = blocks.front().size;
  Schedule result{world_size, 1, {}};
  result.rounds.resize(static_cast<size_t>(std::bit_width(unsigned(world_size - 1))));
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Block& block = blocks[i];
    const int num_rounds = std::countr_zero(unsigned(block.size));
    for (int t = 0; t < num_rounds; ++t)
      for (int q = 0; q < block.size; ++q)
        result.rounds[static_cast<size_t>(t)].push_back(
            {block.first + q, block.first + (q ^ 1 << t), 0, 1, true});
    if (i + 1 == blocks.size()) break;
    const Block& smaller = blocks[i + 1];
    for (int q = 0; q < block.size; ++q)
      result.rounds[static_cast<size_t>(num_rounds - 1)].push_back(
          {smaller.first + q % smaller.size, block.first + q, 0, 1, true});
  }
  for (int r = largest; r < world_size; ++r)
    result.rounds.back().push_back({r - largest, r, 0, 1, false});
  return result;
}

}  // namespace hier
