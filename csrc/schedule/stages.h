// Hierarchy as data: a collective over nodes is a list of collectives within nodes and between
// them. hierarchical() renders the list as one schedule, which check, simulator, pictures and
// engine read like any other.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "schedule/schedule.h"

namespace hier {

enum class Scope : uint8_t {
  node,  // among the ranks of each node
  rail,  // among the ranks, one of each node, that have the same shard
};

struct Stage {
  Scope scope;
  Collective what;
};

// The stages of a collective; none for a barrier, which has no form of its own over nodes.
std::span<const Stage> stages_of(Collective collective);

// The stages as one schedule, with the least possible traffic between nodes (Goyal et al. 2017,
// section 4, for allreduce). node_of[r] is the node of rank r, numbered from 0; ranks of a node
// need not be neighbours, nor nodes of one size. `between` is the schedule of each rail: the
// stage's collective among as many ranks as there are nodes, from or to the root's node. `rails`
// ranks of each node, at most the smallest node's, talk to other nodes. Throws
// std::invalid_argument.
Schedule hierarchical(Collective collective, const std::vector<int>& node_of,
                      const Schedule& between, int rails, int root = 0);

}  // namespace hier
