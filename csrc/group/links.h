// How a rank reaches the others of its group.
#pragma once

#include <memory>
#include <vector>

#include "base/doorbell.h"
#include "group/topology.h"
#include "local/arena.h"
#include "transport/channel.h"

namespace hier {

using Channels = std::vector<std::unique_ptr<Channel>>;  // by rank; null where there is none

struct Links {
  Channels control;
  std::vector<Channels> lanes;
  Channels messages;
};

// Channels through shared memory to the other ranks of the node: set number `index` of the arena's.
// The arena must outlive them.
void open_rings(const Arena& arena, int index, const Topology& topology, Doorbells& bells,
                Channels& channels);

std::vector<Channel*> pointers(const Channels& channels);

}  // namespace hier
