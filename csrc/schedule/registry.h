// The table of algorithms: one row for each collective that one serves. Group, cost model, trainer,
// benchmarks and documents ask it; none of them keeps a list of its own.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "schedule/schedule.h"

namespace hier {

struct AlgorithmInfo {
  Collective collective;
  std::string_view name;
  const char* what;  // in a clause
  bool canonical;    // adds along the balanced tree over rank order
  // Whether it suits a buffer of so many bytes where nobody has measured. Null: never.
  bool (*suits)(size_t bytes, int world_size);
  Schedule (*make)(int world_size, int root);
};

// The rows of a collective in order of preference: of algorithms that make the same moves, and of
// those that suit a buffer, the first is meant.
std::vector<AlgorithmInfo> algorithms(Collective collective);

// Each alias and the name that it stands for.
std::vector<std::pair<std::string_view, std::string_view>> algorithm_aliases();
std::string_view resolve_alias(std::string_view algorithm);  // other names stay as they are

// The first row that suits: thresholds for a switched Ethernet.
std::string_view choose_unmeasured(Collective collective, size_t bytes, int world_size);

// Builds the schedule of an algorithm, by its name or an alias. Throws std::invalid_argument with a
// sentence for an unknown name, or a world size or root out of range. "auto" is no algorithm: the
// group resolves it first.
Schedule build(Collective collective, std::string_view algorithm, int world_size, int root = 0);

}  // namespace hier
