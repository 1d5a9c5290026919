// Comparing and describing run headers.
#include "engine/header.h"

#include <cstring>

#include "base/error.h"

namespace hier {

void RunHeader::set_algorithm(std::string_view name) {
  if (name.size() > sizeof algorithm) {
    throw UsageError("algorithm name '" + std::string(name) + "' has more than 24 characters");
  }
  std::memset(algorithm, 0, sizeof algorithm);
  std::memcpy(algorithm, name.data(), name.size());
}

uint64_t RunHeader::hash(uint64_t seed) const {
  RunHeader shared = *this;
  shared.source = 0;
  uint64_t words[sizeof(RunHeader) / 8];
  std::memcpy(words, &shared, sizeof words);
  for (uint64_t word : words) seed = (seed ^ word) * 0x100000001b3 ^ seed >> 29;
  return seed;
}

std::string describe(const RunHeader& h) {
  std::string text = name_of(h.collective);
  text += std::string("(") + name_of(h.dtype) + "[" + std::to_string(h.count) + "]";
  if (info(h.collective).reduces) text += std::string(", ") + name_of(h.op);
  if (info(h.collective).rooted) text += ", root " + std::to_string(h.root);
  if (h.algorithm[0]) text += ", " + std::string(h.algorithm, strnlen(h.algorithm, 24));
  return text + ") #" + std::to_string(h.run);
}

namespace {

// Whether collective, operation and dtype exist.
bool can_be_described(const RunHeader& h) {
  try {
    return !describe(h).empty();
  } catch (const UsageError&) {
    return false;
  }
}

}  // namespace

std::optional<std::string> disagreement(const RunHeader& mine, const RunHeader& theirs, int from) {
  if (theirs.magic != RunHeader::kMagic || theirs.version != RunHeader::kVersion ||
      theirs.group_id != mine.group_id || theirs.generation != mine.generation ||
      !can_be_described(theirs)) {
    return "the stream from a peer does not continue with a run header of this group: another "
           "version of hier-allreduce, or corrupted data";
  }
  if (theirs.source != from) {
    return "rank " + std::to_string(mine.source) + " received, as of rank " + std::to_string(from) +
           ", the run header of rank " + std::to_string(theirs.source) + " (" + describe(theirs) +
           "): connections are crossed, or data corrupted";
  }
  RunHeader same = theirs;
  same.source = mine.source;
  if (std::memcmp(&same, &mine, sizeof same) == 0) return std::nullopt;
  std::string text = "ranks disagree: rank " + std::to_string(mine.source) + " called " +
                     describe(mine) + ", rank " + std::to_string(theirs.source) + " called " +
                     describe(theirs);
  if (mine.run == theirs.run && mine.history != theirs.history) {
    text +=
        "; an earlier collective differed, one in which these ranks only sent, such as a "
        "broadcast with another root";
  } else if (describe(mine) == describe(theirs)) {
    text +=
        " with different names, shapes, split sizes, places in symmetric memory, or options "
        "(local, "
        "rails, segment_bytes) of their communicators";
  }
  if (mine.collective == Collective::alltoall && theirs.collective == Collective::alltoall) {
    text += "; elements are those between two ranks, and all ranks give split sizes or none does";
  }
  return text + ". All ranks must call the same collectives with the same arguments in one order";
}

}  // namespace hier
