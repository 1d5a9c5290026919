// Node layout of a group.
#include "group/topology.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace hier {

Topology::Topology(int rank_, std::vector<int> nodes)
    : rank(rank_), world_size(static_cast<int>(nodes.size())), node_of_rank(std::move(nodes)) {
  if (rank < 0 || rank >= world_size) {
    throw UsageError("rank " + std::to_string(rank) + " is outside a world of " +
                     std::to_string(world_size) + " ranks");
  }
  for (int r = 0; r < world_size; ++r) {
    const int n = node_of_rank[r];
    if (n < 0 || n > static_cast<int>(members.size())) {
      throw UsageError("node_of_rank must number nodes 0, 1, ... in order of first appearance");
    }
    if (n == static_cast<int>(members.size())) members.emplace_back();
    members[n].push_back(r);
  }
  num_nodes = static_cast<int>(members.size());
  node = node_of_rank[rank];
  const auto& mine = neighbours();
  local_size = static_cast<int>(mine.size());
  local_rank = static_cast<int>(std::find(mine.begin(), mine.end(), rank) - mine.begin());
  smallest_node = world_size;
  for (const auto& ranks : members) {
    smallest_node = std::min(smallest_node, static_cast<int>(ranks.size()));
  }
}

std::vector<int> Topology::rail(int rail) const {
  std::vector<int> ranks;
  for (const auto& node_ranks : members) ranks.push_back(node_ranks[rail]);
  return ranks;
}

}  // namespace hier
