// Circulant reduce-scatter: any world size in ceil(lg p) rounds, each chunk sent once by each rank
// (Traff 2024, arXiv 2410.14234).
#include "schedule/builders.h"

namespace hier {

// Before a round, rank r holds partial sums of the `span` chunks r, r+1, ... (modulo p). It hands
// the farther half to the rank for which they are the nearer half. Modulo p a message is one run of
// chunks; where it wraps around it is two moves.
Schedule circulant_reduce_scatter(int world_size) {
  Schedule result{world_size, world_size, {}};
  for (int span = world_size; span > 1;) {
    const int kept = (span + 1) / 2, sent = span - kept;
    Round& round = result.rounds.emplace_back();
    for (int r = 0; r < world_size; ++r) {
      const int dst = (r + kept) % world_size, end = dst + sent;
      round.push_back({r, dst, dst, end < world_size ? end : world_size, true});
      if (end > world_size) round.push_back({r, dst, 0, end - world_size, true});
    }
    span = kept;
  }
  return result;
}

}  // namespace hier
