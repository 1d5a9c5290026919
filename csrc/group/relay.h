// An alltoall by node: what the ranks of a node have for those of another crosses the network in
// one message for each rail, by way of the rank there that talks to the other node.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "group/topology.h"
#include "program/program.h"
#include "schedule/schedule.h"

namespace hier {

// One rank's part: a program over memory of its own, where what others send to others lies on its
// way; and what is copied into that memory and out of it. In elements.
struct Relay {
  struct Copy {
    size_t from, to, count;
  };
  Program program;
  size_t count = 0;
  std::vector<Copy> in, out;  // from the caller's input, into the caller's output
};

// Of the stages as one schedule, with so many rails; each part has `part` elements.
Relay make_relay(const Schedule& schedule, const Topology& topology,
                 std::span<const int> machine_of_rank, int rails, size_t part, size_t segment);

}  // namespace hier
