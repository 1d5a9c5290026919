// Whose is what of a buffer that has a part for each rank.
#pragma once

#include <cstddef>
#include <vector>

#include "schedule/collective.h"

namespace hier {

struct Range {  // of elements
  size_t lo, hi;
  bool empty() const { return lo == hi; }
  size_t size() const { return hi - lo; }
};

// Part r is [parts[r], parts[r + 1]): the bounds as they are, or even ones where there are none.
inline std::vector<size_t> parts_of(const std::vector<size_t>& bounds, size_t count,
                                    int world_size) {
  if (!bounds.empty()) return bounds;
  std::vector<size_t> even;
  for (int r = 0; r <= world_size; ++r) even.push_back(count / world_size * r);
  return even;
}

inline bool are_even(const std::vector<size_t>& bounds, size_t count, int world_size) {
  return !bounds.empty() && count % static_cast<size_t>(world_size) == 0 &&
         bounds == parts_of({}, count, world_size);
}

// What `rank` holds of a buffer of `count` elements, of a collective that has no chunk per pair.
inline Range range_of(Holders holders, const std::vector<size_t>& bounds, size_t count, int rank,
                      int root, int world_size) {
  if (holders == Holders::owner) {
    const auto parts = parts_of(bounds, count, world_size);
    return {parts[rank], parts[rank + 1]};
  }
  return holds(holders, rank, 0, root, world_size) ? Range{0, count} : Range{0, 0};
}

}  // namespace hier
