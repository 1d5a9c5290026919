// One collective under way on one rank: its plan of stages, pipelined by piece. Of an allreduce
// over several nodes (Goyal et al. 2017, section 4.2):
//
//   node reduce_scatter  ->  program between nodes, on each rank's shard  ->  node allgather
//
// While piece k crosses the network, piece k+1 is reduced inside the node. Plan says which other
// stages there are. Where the program is all, there is one piece, but for large buffers on a
// device.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "device/host_staging.h"
#include "engine/engine.h"
#include "group/plan.h"
#include "local/stage.h"
#include "reduce/reduce.h"

namespace hier {

class Execution {
 public:
  // Ranks whose digests are equal agree on the header and on all before it. `local` is null without
  // a local stage, `device` where the buffer is the caller's own. What is passed by pointer
  // outlives the execution.
  Execution(Plan plan, const RunHeader* header, Engine* engine, LocalStage* local, uint64_t digest,
            uint64_t run_of_lane, HostStaging* device);

  bool progress();  // true if anything moved; throws MismatchError and what the engine throws
  bool finished() const { return first_ == num_pieces_ && !doubtful_ && !lends_; }
  // The local rank, if any, whose flag the oldest piece waits for.
  std::optional<int> waits_for_local() const;
  // Whether the next piece has still to come from the device.
  bool waits_for_device() const;
  std::string describe_wait() const;
  uint64_t shared_bytes() const { return shared_bytes_; }  // read from or written to peers' memory

 private:
  enum class Phase { entering, arrived, inter, gathering };
  struct Piece {
    Range range;  // elements
    Phase phase = Phase::entering;
    Engine::Ticket ticket = 0;
    int owners_copied = 0;
  };
  Piece& piece(uint64_t k) { return window_[k % window_.size()]; }
  const Piece& piece(uint64_t k) const { return window_[k % window_.size()]; }
  uint64_t number(uint64_t k) const { return first_number_ + k; }
  Range shard(uint64_t k, int owner) const { return plan_.shard(piece(k).range, owner); }
  Range result_of(const Piece& piece) const;
  bool owner() const { return !local_ || local_->local_rank() < plan_.rails; }
  bool takes(int owner) const;  // whether this rank ends the first stage with the owner's shard
  bool is_symmetric() const { return !plan_.symmetric.empty(); }
  std::byte* at(size_t element) const { return plan_.data + element * element_bytes_; }
  // An owner's shard of piece k, as `rank` has it.
  std::byte* shared(int rank, uint64_t k, int owner) const;

  bool advance(uint64_t k);
  bool enter(uint64_t k);
  void give(uint64_t k);
  bool take(uint64_t k);
  void take_result(uint64_t k);
  void take_shard(uint64_t k);
  void reduce_shard(uint64_t k, int owner, std::vector<void*> outs);
  void copy_shard(uint64_t k, int owner);
  bool waits_for_local(int rank) const;
  void take_input();
  void give_output();
  bool start_inter(uint64_t k);
  bool finish_inter(uint64_t k);
  bool gather(uint64_t k);
  bool doubt();
  bool take_back();
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
  // Neighbours read the caller's memory until all are done: there is no stage behind that.
  bool lends_ = false;
  uint64_t shared_bytes_ = 0;
};

}  // namespace hier
