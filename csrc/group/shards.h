// How a piece of a buffer is cut into shards: for shared memory and for devices alike.
#pragma once

#include <algorithm>
#include <cstddef>

namespace hier {

struct LocalShard {
  size_t begin, count;  // elements
};

// The part of a piece of `count` elements that rank `owner` of a node reduces. The cut is the same
// on all nodes, whatever their size: only `rails` ranks own a shard.
inline LocalShard local_shard_of(size_t count, int rails, int owner) {
  constexpr size_t kAlign = 16;  // elements
  if (owner >= rails) return {count, 0};
  const auto parts = static_cast<size_t>(rails);
  const size_t each = ((count + parts - 1) / parts + kAlign - 1) / kAlign * kAlign;
  const size_t begin = std::min(count, static_cast<size_t>(owner) * each);
  return {begin, std::min(each, count - begin)};
}

}  // namespace hier
