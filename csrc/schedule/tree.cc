// Trees: reduce, gather, their reversals, and the reduce-scatter that adds in canonical order; and
// what needs no tree: direct exchanges.
#include <algorithm>
#include <bit>
#include <tuple>

#include "schedule/builders.h"

namespace hier {
namespace {

// In `round`, src hands what it has collected from ranks [lo, hi) to dst.
struct Merge {
  int round, src, dst, lo, hi;
};

// Collects ranks [lo, hi) at `holder` along tree(p) = tree(largest power of two < p) + tree(rest),
// whoever the holder is: adding is commutative, so only the grouping counts. The holder of the
// other half sits at the same place in it, which spreads the work of different holders evenly.
// Returns the rounds used, ceil(lg(hi - lo)).
int collect(int lo, int hi, int holder, std::vector<Merge>& merges) {
  if (hi - lo == 1) return 0;
  const int mid = lo + static_cast<int>(std::bit_floor(unsigned(hi - lo - 1)));
  const bool left = holder < mid;
  const int other = left ? mid + (holder - lo) % (hi - mid) : lo + (holder - mid);
  const int round = std::max(collect(lo, mid, left ? holder : other, merges),
                             collect(mid, hi, left ? other : holder, merges));
  merges.push_back({round, other, holder, left ? mid : lo, left ? hi : mid});
  return round + 1;
}

size_t tree_depth(int world_size) {
  return static_cast<size_t>(std::bit_width(unsigned(world_size - 1)));
}

// Joins moves of one round that carry neighbouring chunks between the same two ranks.
void coalesce(Round& round) {
  std::sort(round.begin(), round.end(), [](const Move& a, const Move& b) {
    return std::tie(a.src, a.dst, a.lo) < std::tie(b.src, b.dst, b.lo);
  });
  Round joined;
  for (const Move& move : round) {
    Move* last = joined.empty() ? nullptr : &joined.back();
    if (last && last->src == move.src && last->dst == move.dst && last->hi == move.lo)
      last->hi = move.hi;
    else
      joined.push_back(move);
  }
  round = std::move(joined);
}

}  // namespace

Schedule tree_reduce_scatter(int world_size, const std::vector<int>& owners) {
  const int num_chunks = static_cast<int>(owners.size());
  Schedule result{world_size, num_chunks, std::vector<Round>(tree_depth(world_size))};
  std::vector<Merge> merges;
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    merges.clear();
    collect(0, world_size, owners[static_cast<size_t>(chunk)], merges);
    for (const Merge& m : merges)
      result.rounds[static_cast<size_t>(m.round)].push_back({m.src, m.dst, chunk, chunk + 1, true});
  }
  for (Round& round : result.rounds) coalesce(round);
  return result;
}

// Moves of a round never meet at one rank here, so the list order is free.
static Schedule tree_schedule(int world_size, int num_chunks, int root, bool reduce) {
  Schedule result{world_size, num_chunks, std::vector<Round>(tree_depth(world_size))};
  std::vector<Merge> merges;
  collect(0, world_size, root, merges);
  for (const Merge& m : merges)
    result.rounds[static_cast<size_t>(m.round)].push_back(
        {m.src, m.dst, reduce ? 0 : m.lo, reduce ? 1 : m.hi, reduce});
  return result;
}

Schedule tree_reduce(int world_size, int root) { return tree_schedule(world_size, 1, root, true); }

Schedule tree_gather(int world_size, int root) {
  return tree_schedule(world_size, world_size, root, false);
}

Schedule direct_gather(int world_size, int root) {
  Schedule result{world_size, world_size, {}};
  if (world_size == 1) return result;
  Round& round = result.rounds.emplace_back();
  for (int r = 0; r < world_size; ++r)
    if (r != root) round.push_back({r, root, r, r + 1, false});
  return result;
}

// Round d: everyone sends to the rank d further on. Staggered, so that each receives from one at a
// time.
Schedule pairwise_exchange(int world_size) {
  Schedule result{world_size, world_size * world_size, {}};
  for (int d = 1; d < world_size; ++d) {
    Round& round = result.rounds.emplace_back();
    for (int r = 0; r < world_size; ++r) {
      const int to = (r + d) % world_size, chunk = r * world_size + to;
      round.push_back({r, to, chunk, chunk + 1, false});
    }
  }
  return result;
}

// After round t a rank has heard, directly or not, from the 2^(t+1) ranks up to itself.
Schedule dissemination(int world_size) {
  Schedule result{world_size, 1, {}};
  for (int distance = 1; distance < world_size; distance *= 2) {
    Round& round = result.rounds.emplace_back();
    for (int r = 0; r < world_size; ++r)
      round.push_back({r, (r + distance) % world_size, 0, 1, true});
  }
  return result;
}

}  // namespace hier
