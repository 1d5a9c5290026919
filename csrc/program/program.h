// A program is what one rank does for a schedule: its moves cut into steps of at most `segment`
// elements, with the steps each one waits for. It depends on nothing but (schedule, rank, bounds,
// segment).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "schedule/schedule.h"

namespace hier {

enum class StepKind : uint8_t { send, recv_copy, recv_reduce };

struct Step {
  StepKind kind;
  int peer;
  size_t offset, count;      // elements
  uint32_t waits = 0;        // steps that must finish before this one may start
  uint32_t first_next = 0;   // successors: Program::next[first_next .. the next step's first_next)
  int round = 0, chunk = 0;  // where it comes from, for errors and pictures
};

// The steps of one peer and direction, in wire order: Program::order[first .. first + count).
struct Queue {
  int peer;
  bool send;
  uint32_t first, count;
};

struct Program {
  std::vector<Step> steps;      // topologically ordered; a sentinel with peer -1 closes the list
  std::vector<uint32_t> next;   // successors, see Step::first_next
  std::vector<uint32_t> order;  // step ids grouped by queue
  std::vector<Queue> queues;
  size_t num_steps() const { return steps.empty() ? 0 : steps.size() - 1; }
};

// Chunk bounds that split `count` elements evenly; every bound but the last is a multiple of 16
// elements, so that chunks start on vector boundaries.
std::vector<size_t> even_bounds(size_t count, int num_chunks);

// bounds has num_chunks + 1 ascending element offsets; segment >= 1 is the most elements a step
// carries. Throws std::invalid_argument where they do not fit the schedule.
// Where a rank sends a chunk and adds to it in one round (recursive_doubling, dissemination), the
// receive waits for the send of the same elements, so that channels must hold a whole step. All
// other schedules of build() run on channels of any capacity.
// machine_of_rank: what goes to other machines leaves in the order of rounds; empty: each rank has
// one of its own.
Program lower(const Schedule& schedule, int rank, std::span<const size_t> bounds, size_t segment,
              std::span<const int> machine_of_rank = {});

}  // namespace hier
