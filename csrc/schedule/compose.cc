// How schedules are put together from smaller ones.
#include <algorithm>
#include <stdexcept>

#include "schedule/builders.h"

namespace hier {

Schedule then(Schedule first, const Schedule& second) {
  if (first.world_size != second.world_size || first.num_chunks != second.num_chunks)
    throw std::invalid_argument("then: both schedules must have one world size and chunk count");
  first.rounds.insert(first.rounds.end(), second.rounds.begin(), second.rounds.end());
  return first;
}

Schedule refine(Schedule schedule, int factor) {
  if (factor < 1) throw std::invalid_argument("refine: the factor must be at least 1");
  schedule.num_chunks *= factor;
  for (Round& round : schedule.rounds)
    for (Move& move : round) {
      move.lo *= factor;
      move.hi *= factor;
    }
  return schedule;
}

// A move whose chunks are no longer neighbours becomes one move per run of neighbours.
static void relabel_move(const Move& move, const std::vector<int>& new_chunk, Round& out) {
  std::vector<int> chunks(new_chunk.begin() + move.lo, new_chunk.begin() + move.hi);
  std::sort(chunks.begin(), chunks.end());
  for (size_t i = 0; i < chunks.size();) {
    size_t end = i + 1;
    while (end < chunks.size() && chunks[end] == chunks[end - 1] + 1) ++end;
    out.push_back({move.src, move.dst, chunks[i], chunks[end - 1] + 1, move.reduce});
    i = end;
  }
}

Schedule relabel(const Schedule& schedule, const std::vector<int>& new_chunk) {
  std::vector<int> sorted = new_chunk;
  std::sort(sorted.begin(), sorted.end());
  bool permutation = sorted.size() == static_cast<size_t>(schedule.num_chunks);
  for (size_t i = 0; permutation && i < sorted.size(); ++i)
    permutation = sorted[i] == static_cast<int>(i);
  if (!permutation) throw std::invalid_argument("relabel: new_chunk must permute all chunks");

  Schedule result{schedule.world_size, schedule.num_chunks, {}};
  for (const Round& round : schedule.rounds) {
    Round& out = result.rounds.emplace_back();
    for (const Move& move : round) relabel_move(move, new_chunk, out);
  }
  return result;
}

Schedule reversed(const Schedule& reduce_scatter) {
  Schedule result = reduce_scatter;
  std::reverse(result.rounds.begin(), result.rounds.end());
  for (Round& round : result.rounds)
    for (Move& move : round) move = {move.dst, move.src, move.lo, move.hi, false};
  return result;
}

void overlay(Schedule& schedule, size_t first_round, const Schedule& sub,
             const std::vector<int>& ranks, int first_chunk) {
  if (ranks.size() != static_cast<size_t>(sub.world_size))
    throw std::invalid_argument("overlay: one rank is needed for each rank of the sub-schedule");
  for (int rank : ranks)
    if (rank < 0 || rank >= schedule.world_size)
      throw std::invalid_argument("overlay: rank " + std::to_string(rank) + " does not exist");
  if (first_chunk < 0 || first_chunk > schedule.num_chunks - sub.num_chunks)
    throw std::invalid_argument("overlay: the sub-schedule's chunks do not fit");

  schedule.rounds.resize(std::max(schedule.rounds.size(), first_round + sub.rounds.size()));
  for (size_t t = 0; t < sub.rounds.size(); ++t)
    for (const Move& move : sub.rounds[t])
      schedule.rounds[first_round + t].push_back(
          {ranks[static_cast<size_t>(move.src)], ranks[static_cast<size_t>(move.dst)],
           first_chunk + move.lo, first_chunk + move.hi, move.reduce});
}

void append(Round& round, const Move& move) {
  if (!round.empty()) {
    Move& last = round.back();
    if (last.src == move.src && last.dst == move.dst && last.reduce == move.reduce &&
        last.hi == move.lo) {
      last.hi = move.hi;
      return;
    }
  }
  round.push_back(move);
}

}  // namespace hier
