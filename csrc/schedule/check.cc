// Runs a schedule on sets instead of numbers: which ranks' contributions does each cell hold?
#include <bit>
#include <cstdint>
#include <string>

#include "schedule/builders.h"

namespace hier {
namespace {

std::string at(size_t round, const Move& move) {
  return "round " + std::to_string(round) + ", move " + describe(move) + ": ";
}

// Law 2 in one word a cell: which round wrote it last, and whether that was a copy.
class WriteMarks {
 public:
  explicit WriteMarks(const Schedule& schedule)
      : num_chunks_(static_cast<size_t>(schedule.num_chunks)),
        marks_(static_cast<size_t>(schedule.world_size) * num_chunks_, 0) {}

  bool allows(const Move& move, size_t round) {
    for (int c = move.lo; c < move.hi; ++c) {
      uint64_t& mark = marks_[static_cast<size_t>(move.dst) * num_chunks_ + static_cast<size_t>(c)];
      const uint64_t reduced = 2 * (round + 1), copied = reduced + 1;
      if (mark == copied || (mark == reduced && !move.reduce)) return false;
      mark = move.reduce ? reduced : copied;
    }
    return true;
  }

 private:
  size_t num_chunks_;
  std::vector<uint64_t> marks_;
};

// The contributions held in each cell (rank, chunk), a bit a rank. The empty set is data that
// nobody may read. Only written cells are touched.
class Holdings {
 public:
  Holdings(const Schedule& schedule, Collective collective, int root)
      : world_size_(schedule.world_size),
        num_chunks_(schedule.num_chunks),
        words_((static_cast<size_t>(world_size_) + 63) / 64),
        bits_(static_cast<size_t>(world_size_) * static_cast<size_t>(num_chunks_) * words_, 0),
        overlap_(collective == Collective::barrier) {
    for (int r = 0; r < world_size_; ++r)
      for (int c = 0; c < num_chunks_; ++c)
        if (starts_with(collective, root, r, c))
          cell(r, c)[static_cast<size_t>(r) / 64] |= uint64_t{1} << (r % 64);
  }

  // A round reads before it writes: first what all moves carry, then where it goes.
  std::string run(const Round& round, size_t index) {
    carried_.clear();
    for (const Move& move : round) {
      const uint64_t* begin = cell(move.src, move.lo);
      carried_.insert(carried_.end(), begin,
                      begin + static_cast<size_t>(move.hi - move.lo) * words_);
    }
    const uint64_t* source = carried_.data();
    for (const Move& move : round)
      for (int c = move.lo; c < move.hi; ++c, source += words_)
        if (const char* wrong = apply(move, cell(move.dst, c), source))
          return at(index, move) + wrong + " (chunk " + std::to_string(c) + ")";
    return "";
  }

  // How many contributions the cell holds, and whether rank r's is among them.
  int count(int rank, int chunk) const {
    int total = 0;
    for (size_t w = 0; w < words_; ++w) total += std::popcount(cell(rank, chunk)[w]);
    return total;
  }
  bool has(int rank, int chunk, int contribution) const {
    return cell(rank, chunk)[static_cast<size_t>(contribution) / 64] >> (contribution % 64) & 1;
  }

 private:
  bool starts_with(Collective collective, int root, int rank, int chunk) const {
    switch (collective) {
      case Collective::allgather:
      case Collective::gather:
        return chunk == rank;
      case Collective::broadcast:
      case Collective::scatter:
        return rank == root;
      case Collective::alltoall:
        return chunk / world_size_ == rank;
      default:
        return true;
    }
  }
  size_t offset(int rank, int chunk) const {
    return (static_cast<size_t>(rank) * static_cast<size_t>(num_chunks_) +
            static_cast<size_t>(chunk)) *
           words_;
  }
  uint64_t* cell(int rank, int chunk) { return bits_.data() + offset(rank, chunk); }
  const uint64_t* cell(int rank, int chunk) const { return bits_.data() + offset(rank, chunk); }

  const char* apply(const Move& move, uint64_t* target, const uint64_t* source) const {
    uint64_t shared = 0, sent = 0, held = 0;
    for (size_t w = 0; w < words_; ++w) {
      shared |= target[w] & source[w];
      sent |= source[w];
      held |= target[w];
      target[w] = move.reduce ? target[w] | source[w] : source[w];
    }
    if (!sent) return "the sender has no data yet";
    if (move.reduce && !held) return "adds to a chunk that has no data yet";
    if (move.reduce && shared && !overlap_) return "counts a contribution twice";
    return nullptr;
  }

  int world_size_, num_chunks_;
  size_t words_;
  std::vector<uint64_t> bits_;
  std::vector<uint64_t> carried_;
  bool overlap_;
};

// Which cells a collective promises, and what is in them.
struct Promise {
  Collective collective;
  int root, world_size;

  bool covers(int rank, int chunk) const {
    switch (collective) {
      case Collective::reduce_scatter:
      case Collective::scatter:
        return rank == chunk;
      case Collective::alltoall:
        return rank == chunk % world_size;
      case Collective::reduce:
      case Collective::gather:
        return rank == root;
      default:
        return true;
    }
  }
  // The only contribution that must be in the chunk, or -1 for all of them.
  int single(int chunk) const {
    switch (collective) {
      case Collective::allgather:
      case Collective::gather:
        return chunk;
      case Collective::broadcast:
      case Collective::scatter:
        return root;
      case Collective::alltoall:
        return chunk / world_size;
      default:
        return -1;
    }
  }
};

std::string unfinished(const Holdings& holdings, const Promise& promise, int world_size, int rank,
                       int chunk) {
  const int single = promise.single(chunk), count = holdings.count(rank, chunk);
  const std::string where =
      "at the end, rank " + std::to_string(rank) + " chunk " + std::to_string(chunk) + ": ";
  if (single >= 0)
    return count == 1 && holdings.has(rank, chunk, single)
               ? ""
               : where + "not the data of rank " + std::to_string(single);
  if (count == world_size) return "";
  int missing = 0;
  while (holdings.has(rank, chunk, missing)) ++missing;
  return where + std::to_string(count) + " of " + std::to_string(world_size) +
         " contributions, rank " + std::to_string(missing) + "'s is missing";
}

}  // namespace

std::string malformed(const Schedule& schedule) {
  if (schedule.world_size < 1) return "the world size must be at least 1";
  if (schedule.num_chunks < 1) return "the number of chunks must be at least 1";
  const auto is_rank = [&](int r) { return r >= 0 && r < schedule.world_size; };
  WriteMarks marks(schedule);
  for (size_t t = 0; t < schedule.rounds.size(); ++t)
    for (const Move& move : schedule.rounds[t]) {
      if (!is_rank(move.src) || !is_rank(move.dst)) return at(t, move) + "no such rank";
      if (move.src == move.dst) return at(t, move) + "a rank sends to itself";
      if (move.lo < 0 || move.lo >= move.hi || move.hi > schedule.num_chunks)
        return at(t, move) + "no such chunks";
      if (!marks.allows(move, t))
        return at(t, move) + "a chunk that is written twice in a round must be reduced both times";
    }
  return "";
}

std::string check(const Schedule& schedule, Collective collective, int root) {
  if (std::string wrong = malformed(schedule); !wrong.empty()) return wrong;
  const Promise promise{collective, root, schedule.world_size};
  if (root < 0 || root >= schedule.world_size) return "the root is not a rank";
  if (has_parts(collective) && schedule.num_chunks != schedule.world_size)
    return std::string(name_of(collective)) + " needs one chunk per rank";
  if (collective == Collective::alltoall &&
      schedule.num_chunks != schedule.world_size * schedule.world_size)
    return "alltoall needs one chunk for each pair of ranks";

  Holdings holdings(schedule, collective, root);
  for (size_t t = 0; t < schedule.rounds.size(); ++t)
    if (std::string wrong = holdings.run(schedule.rounds[t], t); !wrong.empty()) return wrong;
  for (int r = 0; r < schedule.world_size; ++r)
    for (int c = 0; c < schedule.num_chunks; ++c) {
      if (!promise.covers(r, c)) continue;
      std::string wrong = unfinished(holdings, promise, schedule.world_size, r, c);
      if (!wrong.empty()) return wrong;
    }
  return "";
}

}  // namespace hier
