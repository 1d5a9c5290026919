// Who shares a node with whom, and which ranks form a rail.
#pragma once

#include <cstddef>
#include <vector>

namespace hier {

// Ranks are global; nodes are numbered 0, 1, ... in the order of their lowest rank.
struct Topology {
  int rank, world_size;
  std::vector<int> node_of_rank;
  std::vector<std::vector<int>> members;  // ranks of each node, ascending
  int node, num_nodes;
  int local_rank, local_size;
  int smallest_node;  // ranks of the smallest node: the most rails there can be

  Topology(int rank, std::vector<int> node_of_rank);  // throws UsageError

  const std::vector<int>& neighbours() const { return members[node]; }
  // The ranks that own shard `rail` on each node, in node order.
  std::vector<int> rail(int rail) const;
  bool same_node(int other) const { return node_of_rank[other] == node_of_rank[rank]; }
};

}  // namespace hier
