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
  Holdings(const Schedule& schedule, const CollectiveInfo& what, int root)
      : world_size_(schedule.world_size),
        num_chunks_(schedule.num_chunks),
        words_((static_cast<size_t>(world_size_) + 63) / 64),
        bits_(static_cast<size_t>(world_size_) * static_cast<size_t>(num_chunks_) * words_, 0),
        overlap_(what.collective == Collective::barrier) {
    for (int r = 0; r < world_size_; ++r)
      for (int c = 0; c < num_chunks_; ++c)
        if (holds(what.before, r, c, root, world_size_))
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

// `source`: the only rank whose data must be in the chunk, or -1 for all of them.
std::string unfinished(const Holdings& holdings, int source, int world_size, int rank, int chunk) {
  const int count = holdings.count(rank, chunk);
  const std::string where =
      "at the end, rank " + std::to_string(rank) + " chunk " + std::to_string(chunk) + ": ";
  if (source >= 0)
    return count == 1 && holdings.has(rank, chunk, source)
               ? ""
               : where + "not the data of rank " + std::to_string(source);
  if (count == world_size) return "";
  int missing = 0;
  while (holdings.has(rank, chunk, missing)) ++missing;
  return where + std::to_string(count) + " of " + std::to_string(world_size) +
         " contributions, rank " + std::to_string(missing) + "'s is missing";
}

}  // namespace

std::string describe(const Move& move) {
  std::string text = std::to_string(move.src) + (move.reduce ? "+>" : "=>");
  text += std::to_string(move.dst) + "[" + std::to_string(move.lo);
  if (move.hi - move.lo != 1) text += "-" + std::to_string(move.hi - 1);
  return text + "]";
}

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
  const int p = schedule.world_size;
  if (root < 0 || root >= p) return "the root is not a rank";
  const CollectiveInfo& what = info(collective);
  const int needed = num_chunks_of(what.chunks, p);
  if (needed != 0 && schedule.num_chunks != needed)
    return std::string(what.name) + " needs one chunk " +
           (what.chunks == Chunks::per_rank ? "per rank" : "for each pair of ranks");

  Holdings holdings(schedule, what, root);
  for (size_t t = 0; t < schedule.rounds.size(); ++t)
    if (std::string wrong = holdings.run(schedule.rounds[t], t); !wrong.empty()) return wrong;
  for (int r = 0; r < p; ++r)
    for (int c = 0; c < schedule.num_chunks; ++c) {
      if (!holds(what.after, r, c, root, p)) continue;
      std::string wrong = unfinished(holdings, source_of(what, c, root, p), p, r, c);
      if (!wrong.empty()) return wrong;
    }
  return "";
}

}  // namespace hier
