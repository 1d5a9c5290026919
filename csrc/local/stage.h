// The shared-memory local stage: the ranks of a node pass pieces of a buffer through slots that all
// of them map. Nothing here blocks; group/ drives it and sleeps.
//
// A piece goes through three states on every rank: arrived (its contribution may be read), reduced
// (its shard is final), done (it reads nothing of the piece any more). The slots of piece s are
// reused by piece s + num_slots, once every rank is done with s.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>

#include "local/arena.h"

namespace hier {

class LocalStage {
 public:
  enum class State { arrived, reduced, done };

  LocalStage(std::shared_ptr<Arena> arena, int lane, int local_rank, Doorbells* bells)
      : arena_(std::move(arena)), bells_(bells), lane_(lane), me_(local_rank) {}

  int local_size() const { return arena_->layout().local_size; }
  int local_rank() const { return me_; }
  uint64_t pieces_in_flight() const { return static_cast<uint64_t>(arena_->layout().num_slots); }

  // Pieces of a lane are numbered over all runs; a run takes `count` consecutive numbers.
  uint64_t take(uint64_t count) { return std::exchange(next_piece_, next_piece_ + count); }

  // All ranks have reached `state` with every piece up to and including this one.
  bool all(State state, uint64_t piece) const {
    for (int rank = 0; rank < local_size(); ++rank) {
      if (!reached(rank, state, piece)) return false;
    }
    return true;
  }
  bool reached(int rank, State state, uint64_t piece) const {
    return counter(rank, state).load(std::memory_order_acquire) > piece;
  }
  // Says that this rank reached `state` with every piece up to and including this one.
  void publish(State state, uint64_t piece) {
    counter(me_, state).store(piece + 1, std::memory_order_release);
    bells_->ring_all();
  }

  bool slot_free(uint64_t piece) {
    if (piece < pieces_in_flight() + done_by_all_) return true;
    uint64_t least = UINT64_MAX;
    for (int rank = 0; rank < local_size(); ++rank) {
      least = std::min(least, counter(rank, State::done).load(std::memory_order_acquire));
    }
    done_by_all_ = least;
    return piece < pieces_in_flight() + done_by_all_;
  }
  // Before this rank writes into its slot of the piece. Throws as Arena::allocate.
  void allocate_slot(uint64_t piece) {
    const uint64_t bit = uint64_t{1} << piece % pieces_in_flight();
    if (allocated_slots_ & bit) return;
    arena_->allocate(slot(me_, piece), arena_->layout().slot_bytes);
    allocated_slots_ |= bit;
  }
  std::byte* slot(int rank, uint64_t piece) const { return arena_->slot(lane_, rank, piece); }

  // Written before `arrived` of a run's first piece and read after it. A rank is never more than
  // one run of a lane ahead, so two places suffice.
  void write_header(uint64_t run_of_lane, const void* header, uint64_t digest) {
    ProgressCounters& port = arena_->port(lane_, me_);
    port.digests[run_of_lane % 2] = digest;
    std::memcpy(port.headers[run_of_lane % 2], header, ProgressCounters::kHeaderBytes);
  }
  uint64_t digest_of(int rank, uint64_t run_of_lane) const {
    return arena_->port(lane_, rank).digests[run_of_lane % 2];
  }
  const std::byte* header_of(int rank, uint64_t run_of_lane) const {
    return arena_->port(lane_, rank).headers[run_of_lane % 2];
  }

  // Before the callers of this rank use their memory for something else.
  void say_failed() {
    arena_->sleep_words()[me_].failed.store(1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  // A rank that has failed, if any: what has been read of its caller's memory until now may be
  // anything, and so may be what others have made of it.
  std::optional<int> failed() const {
    std::atomic_thread_fence(std::memory_order_acquire);  // after what has been read
    for (int rank = 0; rank < local_size(); ++rank) {
      if (arena_->sleep_words()[rank].failed.load(std::memory_order_relaxed)) return rank;
    }
    return std::nullopt;
  }

 private:
  std::atomic<uint64_t>& counter(int rank, State state) const {
    ProgressCounters& port = arena_->port(lane_, rank);
    switch (state) {
      case State::arrived:
        return port.arrived;
      case State::reduced:
        return port.reduced;
      case State::done:
        break;
    }
    return port.done;
  }

  std::shared_ptr<Arena> arena_;
  Doorbells* bells_;
  int lane_, me_;
  uint64_t next_piece_ = 0;
  uint64_t allocated_slots_ = 0;  // a bit for each
  uint64_t done_by_all_ = 0;      // pieces, at the last look: one look frees several slots
};

}  // namespace hier
