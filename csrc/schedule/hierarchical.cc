// The paper's three stages as one schedule (Goyal et al. 2017, section 4).
#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "schedule/builders.h"
#include "schedule/registry.h"

namespace hier {
namespace {

void check_arguments(const std::vector<int>& node_sizes, std::string_view local, int rails) {
  if (node_sizes.empty())
    throw std::invalid_argument("hierarchical: node_sizes must name at least one node");
  const int smallest = *std::min_element(node_sizes.begin(), node_sizes.end());
  if (smallest < 1) throw std::invalid_argument("hierarchical: a node needs at least one rank");
  if (local != "rs_ag" && local != "reduce_bcast")
    throw std::invalid_argument("hierarchical: local must be rs_ag or reduce_bcast, not '" +
                                std::string(local) + "'");
  if (rails < 1 || rails > smallest)
    throw std::invalid_argument("hierarchical: rails must be 1 to " + std::to_string(smallest) +
                                ", the size of the smallest node, not " + std::to_string(rails));
}

std::vector<int> first_ranks(const std::vector<int>& node_sizes) {
  std::vector<int> first(node_sizes.size());
  std::exclusive_scan(node_sizes.begin(), node_sizes.end(), first.begin(), 0);
  return first;
}

}  // namespace

// The buffer is cut into one shard per rail. Local rank l < rails of each node collects shard l
// along the canonical tree of its node (as the shared-memory stage does), allreduces it with local
// rank l of the other nodes, and hands it back the way it came. One rail is the paper's own form,
// reduce and broadcast; "reduce_bcast" means one rail whatever `rails` says.
Schedule hierarchical(const std::vector<int>& node_sizes, std::string_view local,
                      std::string_view inter, int rails) {
  check_arguments(node_sizes, local, rails);
  if (local == "reduce_bcast") rails = 1;
  const int num_nodes = static_cast<int>(node_sizes.size());
  const Schedule across = build(Collective::allreduce, inter, num_nodes);
  const std::vector<int> first = first_ranks(node_sizes);
  Schedule result{first.back() + node_sizes.back(), rails * across.num_chunks, {}};

  std::vector<Schedule> collects;
  size_t local_rounds = 0;
  for (int size : node_sizes) {
    collects.push_back(refine(tree_reduce_scatter(size, rails), across.num_chunks));
    local_rounds = std::max(local_rounds, collects.back().rounds.size());
  }
  for (size_t node = 0; node < collects.size(); ++node) {
    std::vector<int> ranks(static_cast<size_t>(node_sizes[node]));
    std::iota(ranks.begin(), ranks.end(), first[node]);
    overlay(result, 0, collects[node], ranks, 0);
    overlay(result, local_rounds + across.rounds.size(), reversed(collects[node]), ranks, 0);
  }
  for (int rail = 0; rail < rails; ++rail) {
    std::vector<int> ranks = first;
    for (int& rank : ranks) rank += rail;
    overlay(result, local_rounds, across, ranks, rail * across.num_chunks);
  }
  return result;
}

}  // namespace hier
