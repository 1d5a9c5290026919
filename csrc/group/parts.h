// Whose is what of a buffer that has a part for each rank.
#pragma once

#include <cstddef>
#include <vector>

namespace hier {

// Part r is [parts[r], parts[r + 1]): the bounds as they are, or even ones where there are none.
inline std::vector<size_t> parts_of(const std::vector<size_t>& bounds, size_t count,
                                    int world_size) {
  if (!bounds.empty()) return bounds;
  std::vector<size_t> even;
  for (int r = 0; r <= world_size; ++r) even.push_back(count / world_size * r);
  return even;
}

}  // namespace hier
