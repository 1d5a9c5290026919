// What happens in the life of a group, drawn from a seed before anything runs: who is where, what
// all ranks call, and what goes wrong.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "random.h"
#include "schedule/collective.h"

namespace hier::simulation {

// A call that all ranks make, in one order; or a message between two of them.
struct Operation {
  bool message = false;
  Collective what = Collective::allreduce;
  std::string algorithm = "auto";
  size_t count = 0;            // elements of the whole buffer
  std::vector<size_t> bounds;  // of uneven parts
  int root = 0;
  int buffer = 0;
  bool fresh = true;  // works on new data; else on what an earlier call leaves, without a wait
  bool waits = true;  // the caller waits for it before the next call
  int from = 0, to = 0, tag = 0;  // of a message
  bool hopeless = false;          // received, and never sent
  bool late = false;              // the receiver makes the next call first
  int stranger = -1;              // a rank that calls another reduction
};

struct Fault {
  enum class Kind {
    kill,
    pause,
    abort,
    leave,
    jump,
    reset,
    black_hole,
    flip,
    flip_control,
    no_memory
  };
  Kind kind{};
  int rank = 0, other = 0;        // black_hole: from the node of one to that of the other
  bool both_ways = true;          // of a black hole
  int64_t allocations = 0;        // that a rank makes yet, before one fails
  Clock::duration at{}, lasts{};  // since the start; of a pause, or how far a clock jumps
};
std::string describe(const Operation& operation);
std::string describe(const Fault& fault);

struct Scenario {
  uint64_t seed = 0;  // of the schedule of steps, delays and portions
  std::vector<int> node_of_rank;
  int lanes = 2, rails = 0, num_buffers = 1;
  bool hierarchical = true, checksum = true;
  bool drains = false;     // ranks wait for what is in flight before they leave
  bool symmetric = false;  // the buffers lie in memory that the ranks of a node share
  bool on_demand = false;  // nodes are connected at the first use of a pair of ranks
  bool sparse = false;     // and not all ranks have control links,
  bool ring = false;       // but for those of a node only the next and the one before
  size_t segment_bytes = 1 << 10, slot_bytes = 1 << 12, ring_bytes = 1 << 10;
  size_t one_shot_bytes = 1 << 9, one_rail_bytes = 1 << 9;
  Clock::duration most_delay{};
  size_t capacity = 1 << 12;
  double timeout = 300;
  std::vector<Operation> operations;
  std::vector<Fault> faults;

  size_t symmetric_bytes() const;   // of a rank
  bool linked(int a, int b) const;  // by a control link
  bool has_stranger() const;
  int world_size() const { return static_cast<int>(node_of_rank.size()); }
};

Scenario draw(uint64_t seed);

}  // namespace hier::simulation
