// Discrete-event simulation: the very programs that the engine runs, on a modelled network.
//
// The model: a message occupies the sender's outgoing port for `overhead + bytes * beta`, its first
// byte arrives alpha later, and it occupies the receiver's incoming port for bytes * beta. Ports
// serve first come, first served, and each direction is a port of its own. Ranks of one node talk
// through local ports (a pair per rank), ranks of different nodes through their nodes' NICs (a pair
// per node, shared by its ranks). Sends are eager: they do not wait for the receiver. A reduction
// occupies the receiving rank for bytes * gamma, a copy costs nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "program/program.h"

namespace hier {

struct Link {
  double alpha = 0;     // seconds from the first byte sent to the first byte received
  double beta = 0;      // seconds per byte
  double overhead = 0;  // seconds that a message occupies the outgoing port besides its bytes
};

struct Network {
  std::vector<int> node_of;  // the node of each rank, numbered from 0
  Link local;                // between two ranks of a node
  Link inter;                // between nodes
  double gamma = 0;          // seconds per byte reduced
};

// One step of one rank: a send's time on the outgoing port, or a receive's from the first byte on
// the incoming port to the end of its reduction or copy.
struct TimelineEntry {
  int rank;
  uint32_t step;
  StepKind kind;
  int peer;
  int round, chunk;
  size_t bytes;
  double start, end;
};

struct Simulation {
  double seconds = 0;
  std::vector<double> rank_reducing;                  // seconds that each rank spent reducing
  std::vector<double> local_out_busy, local_in_busy;  // seconds, by rank
  std::vector<double> nic_out_busy, nic_in_busy;      // seconds, by node
  std::vector<TimelineEntry> timeline;                // in the order in which the steps ended
};

// programs[r] is rank r's; each step moves count * element_size bytes. Throws
// std::invalid_argument for a network that does not fit, std::logic_error if the programs do not
// belong together (they would wait for ever).
Simulation simulate(std::span<const Program> programs, size_t element_size, const Network& network);

// Lowers every rank's program and simulates them.
Simulation simulate(const Schedule& schedule, std::span<const size_t> bounds, size_t element_size,
                    size_t segment, const Network& network);

}  // namespace hier
