// One collective under way on one rank: its plan of stages, pipelined by piece.
//
//   local reduce-scatter  ->  inter-node program on each rank's shard  ->  local allgather
//
// While piece k crosses the network, piece k+1 is reduced inside the node. A flat collective has no
// local stage, and is one piece, but for large ones on a device. (Goyal et al. 2017, section 4.2)
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "device/host_staging.h"
#include "engine/engine.h"
#include "group/parts.h"
#include "group/relay.h"
#include "group/shards.h"
#include "local/stage.h"
#include "reduce/reduce.h"

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

  bool staged = false;         // some node has a local stage
  bool local = false;          // this one has
  bool one_shot = false;       // every rank reduces everything (one node)
  bool beyond_caches = false;  // the node's private buffers are larger than its caches
  int rails = 1;               // ranks of a node that own a shard of each piece
  size_t piece = 0;            // elements of a piece
  // Of device memory: a piece consists of so many slices, one of each rank's part.
  int slices = 1;
  // The same place in each local rank's symmetric memory; empty if the buffer is private.
  std::vector<std::byte*> symmetric;
  // Of an alltoall by node: its program, and the copies around it.
  std::shared_ptr<const Relay> relay;
  // The inter-node program for a shard of so many elements; null if the stage is empty.
  std::function<std::shared_ptr<const Program>(size_t count)> program;

  uint64_t num_pieces() const { return (count + piece - 1) / piece; }
};

class Execution {
 public:
  // Ranks whose digests are equal agree on the header and on all before it. `local` is null without
  // a local stage, `device` where the buffer is the caller's own. What is passed by pointer
  // outlives the execution.
  Execution(Plan plan, const RunHeader* header, Engine* engine, LocalStage* local, uint64_t digest,
            uint64_t run_of_lane, HostStaging* device);

  bool progress();  // true if anything moved; throws MismatchError and what the engine throws
  bool finished() const { return first_ == num_pieces_ && !doubtful_; }
  // The local rank, if any, whose flag the oldest piece waits for.
  std::optional<int> waits_for_local() const;
  // Whether the next piece has still to come from the device.
  bool waits_for_device() const;
  std::string describe_wait() const;
  uint64_t shared_bytes() const { return shared_bytes_; }  // read from or written to peers' memory

 private:
  enum class Phase { entering, arrived, inter, gathering };
  struct Piece {
    size_t begin = 0, end = 0;  // elements
    Phase phase = Phase::entering;
    Engine::Ticket ticket = 0;
    int owners_copied = 0;
  };
  Piece& piece(uint64_t k) { return window_[k % window_.size()]; }
  const Piece& piece(uint64_t k) const { return window_[k % window_.size()]; }
  uint64_t number(uint64_t k) const { return first_number_ + k; }
  LocalShard shard(const Piece& piece, int owner) const;  // in the whole buffer
  Range result_of(const Piece& piece) const;
  bool owner() const { return !local_ || local_->local_rank() < plan_.rails; }
  bool is_symmetric() const { return !plan_.symmetric.empty(); }
  std::byte* at(size_t element) const { return plan_.data + element * element_bytes_; }
  std::byte* shared(int rank, uint64_t k, size_t element) const;

  bool advance(uint64_t k);
  bool enter(uint64_t k);
  bool reduce(uint64_t k);
  void reduce_shard(uint64_t k, LocalShard shard, std::vector<void*> outs);
  void take_input();
  void give_output();
  bool start_inter(uint64_t k);
  bool finish_inter(uint64_t k);
  bool gather(uint64_t k);
  bool doubt();
  void compare_headers() const;
  void complete(uint64_t k);

  Plan plan_;
  // Of an alltoall: a copy of the input that its output replaces, or where parts are on their way.
  std::unique_ptr<std::byte[]> aside_;
  const RunHeader* header_;
  Engine* engine_;
  LocalStage* local_;
  HostStaging* device_;
  uint64_t digest_, run_of_lane_;
  size_t element_bytes_;
  ReduceFn reduce_;
  uint64_t num_pieces_, first_number_ = 0;
  uint64_t first_ = 0;      // oldest unfinished piece
  uint64_t entered_ = 0;    // pieces below have entered
  uint64_t published_ = 0;  // pieces below have published their shard
  std::vector<Piece> window_;
  // A neighbour has failed whose memory was read: the run has no result, and waits for the reason.
  bool doubtful_ = false;
  uint64_t shared_bytes_ = 0;
};

}  // namespace hier
