// What a collective does on one rank: its stages, and how its buffer is cut. It is data: Execution
// runs it, and devices that sum among themselves take their shards from it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "group/parts.h"
#include "group/relay.h"
#include "program/program.h"
#include "reduce/reduce.h"
#include "schedule/collective.h"

namespace hier {

struct Plan {
  std::byte* data = nullptr;
  const std::byte* input = nullptr;  // of an alltoall: where sends read
  size_t input_bytes = 0;
  struct {
    size_t from, to, bytes;  // offsets of what a rank keeps, in the input and in `data`
  } keep{};
  size_t count = 0;  // elements
  DType dtype{};
  ReduceOp op{};
  int divisor = 1;  // avg: by what the finished elements are divided
  Range result{};   // the elements of a flat plan that this rank ends with

  // The stages: a collective among the ranks of this node, a program, another collective within the
  // node. These are all there are: the program alone; one collective of the node's, without a root;
  // reduce_scatter and allgather, with the program between them or none.
  std::optional<Collective> first, last;
  // The program for a shard of so many elements.
  std::function<std::shared_ptr<const Program>(size_t count)> program;
  bool place_matters = false;  // to the stages: see Planner::place

  int rails = 1;              // ranks of a node that own a shard of each piece
  size_t piece = 0;           // elements of a piece
  std::vector<size_t> parts;  // where the shards of the only piece begin, and its end; none: even
  // Of device memory: a piece consists of so many slices, one of each rank's part.
  int slices = 1;
  bool beyond_caches = false;  // the node's private buffers are larger than its caches
  // The same place in each local rank's symmetric memory; empty if the buffer is private.
  std::vector<std::byte*> symmetric;
  // Of an alltoall by node: its program, and the copies around it.
  std::shared_ptr<const Relay> relay;

  bool in_node() const { return first || last; }
  uint64_t num_pieces() const { return (count + piece - 1) / piece; }
  Range piece_at(uint64_t k) const { return {k * piece, std::min(count, (k + 1) * piece)}; }
  // What of a piece is the shard of this rank of the node. The cut is the same on all nodes,
  // whatever their size.
  Range shard(Range of, int owner) const {
    if (!parts.empty()) return {parts[owner], parts[owner + 1]};
    constexpr size_t kAlign = 16;  // elements
    const auto owners = static_cast<size_t>(rails);
    const size_t each = ((of.size() + owners - 1) / owners + kAlign - 1) / kAlign * kAlign;
    const auto begin = [&](int rank) {
      return rank >= rails ? of.hi : std::min(of.hi, of.lo + static_cast<size_t>(rank) * each);
    };
    return {begin(owner), begin(owner + 1)};
  }
};

}  // namespace hier
