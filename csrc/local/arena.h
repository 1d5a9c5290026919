// The shared memory of one group on one node: who sleeps, the ports and slots of the local stage,
// and the rings of the shared-memory channels. All-zero memory is a valid initial state, so the
// memfd needs no initialisation by anybody.
//
// The memfd starts as a hole of the right size: pages cost 0.4 ms a MiB, and few groups use all.
// Each rank allocates the words, which many ranks write, when it opens the arena; and a slot or
// ring before it first writes there. So memory that the kernel refuses is an error; a write into a
// hole would be a SIGBUS.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/doorbell.h"
#include "base/fd.h"
#include "base/mapping.h"

namespace hier {

// What a local rank tells the others about a lane: how many pieces have reached each state.
// Counters only grow. Each is written by its rank (release) and read by the others (acquire).
struct ProgressCounters {
  static constexpr size_t kHeaderBytes = 64;
  alignas(64) std::atomic<uint64_t> arrived;  // its contribution to the piece may be read
  // Of the headers below: in this line, which the others fetch anyway.
  uint64_t digests[2];
  alignas(64) std::atomic<uint64_t> reduced;  // its shard of the piece is final and may be read
  alignas(64) std::atomic<uint64_t> done;     // it reads nothing of the piece any more
  // The run header of a run's first piece, by parity of the lane's runs; guarded by `arrived`.
  // Read where digests differ, to say in words what does.
  alignas(64) std::byte headers[2][kHeaderBytes];
};

struct ArenaLayout {
  int local_size;
  int lanes;
  size_t slot_bytes;  // of one rank's contribution to one piece
  int num_slots;      // pieces in flight
  size_t ring_bytes;

  // Small enough that the slots of a blocking caller's lanes stay in a core's second cache: with
  // 256 KiB a private buffer takes 1.5x the time.
  static constexpr size_t kSlotBytes = 128 << 10;
  // The more ranks take turns at a core, the more a turn must be worth: each window of slots costs
  // every rank a switch. (On 2 cores 16 ranks take 0.7 of the time with 512 KiB; 8 are indifferent;
  // 4 ranks, whose slots stay in the cache, take 2.5 times the time.)
  static constexpr size_t kMostSlotBytes = 512 << 10;
  static constexpr int kNumSlots = 4;
  // The layout that all ranks of a node agree on: rings for each lane, and for messages. Rings
  // share 32 MiB, up to 512 KiB each. Where that gives less than 32 KiB they have so much, up to
  // 4 MiB for all of a rank: with more ranks than cores, each refill costs a switch, but memory
  // must not grow with the square of the ranks.
  static ArenaLayout plan(int local_size, int lanes);

  size_t bytes() const;
  size_t words_bytes() const;  // of all that comes before the bytes of rings and slots
  size_t port_at(int lane, int rank) const;
  size_t slot_at(int lane, int rank, uint64_t piece) const;
  size_t ring_at(int lane, int from, int to) const;       // the control words
  size_t ring_data_at(int lane, int from, int to) const;  // the bytes

 private:
  size_t lane_index(int lane, int rank) const {
    return static_cast<size_t>(lane) * static_cast<size_t>(local_size) + static_cast<size_t>(rank);
  }
};

class Arena {
 public:
  // Throws SystemError where there is no memory for the words, and what SharedMapping throws.
  Arena(Fd file, ArenaLayout layout);

  const ArenaLayout& layout() const { return layout_; }
  SleepWord* sleep_words() const { return at<SleepWord>(0); }
  ProgressCounters& port(int lane, int rank) const {
    return *at<ProgressCounters>(layout_.port_at(lane, rank));
  }
  std::byte* slot(int lane, int rank, uint64_t piece) const {
    return mapping_->data() + layout_.slot_at(lane, rank, piece);
  }
  std::byte* raw(size_t offset) const { return mapping_->data() + offset; }
  // Makes these pages exist. Throws SystemError where the kernel has none left.
  void allocate(const std::byte* begin, size_t bytes) const;

 private:
  template <class T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(mapping_->data() + offset);
  }
  Fd file_;
  std::shared_ptr<SharedMapping> mapping_;
  ArenaLayout layout_;
};

}  // namespace hier
