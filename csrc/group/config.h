// What a group is made with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace hier {

struct GroupConfig {
  int rank = 0;
  std::vector<int> node_of_rank;
  uint32_t group_id = 0;
  uint16_t generation = 0;
  int lanes = 2;
  double timeout = 300;      // seconds for one collective
  bool hierarchical = true;  // false: schedules run over all ranks, without a local stage
  int rails = 0;             // ranks per node that talk to other nodes; 0: all that can
  size_t segment_bytes = 256 << 10;
  size_t one_shot_bytes = 8 << 10;
  size_t one_rail_bytes = 16 << 10;        // up to here one rank of a node talks to the others
  size_t smallest_piece_bytes = 32 << 10;  // smaller ones cost more than they overlap
  bool checksum = true;            // what passes between nodes is checked; on all ranks alike
  int ranks_on_host = 1;           // that compete for the cores of this machine
  double status_after = 1;         // seconds of waiting after which a rank tells where it is
  double dead_after = 4;           // seconds without an answer after which a host is dead
  bool one_host = false;           // all ranks talk over loopback, which loses much if crowded
  std::vector<std::string> hosts;  // of each rank, for errors
};

}  // namespace hier
