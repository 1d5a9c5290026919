// The local stage of a node's devices: each rank has slots in device memory that its neighbours
// map, and counters in pinned memory that all of them map. It is the protocol of local/stage.h, in
// which streams wait for counters in the place of threads:
//
//   reduce_scatter: own contribution to the own slot . arrived . all arrived? sum the own shard of
//                   all slots into the own slot
//   allgather:      the own shard is final . reduced . each owner reduced? copy its shard . done
//
// Kernels contain no spin: a stream that waits costs nothing, and no grid must be resident.
#pragma once

#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "device/runtime.h"

namespace hier {

struct PeersConfig {
  DeviceRuntime* runtime = nullptr;
  int device = 0;
  int local_size = 1, local_rank = 0;
  // counter_bytes() of each local rank, in shared memory that is zero and outlives the stage.
  std::byte* counters = nullptr;
};

class DevicePeers {
 public:
  static constexpr size_t kSlotBytes = 4 << 20;  // of one rank's contribution to one piece
  static constexpr uint32_t kSlots = 4;          // pieces in flight
  static size_t counter_bytes();

  // Throws CudaError where there is no memory that others can map.
  explicit DevicePeers(PeersConfig config);
  DevicePeers(const DevicePeers&) = delete;
  DevicePeers& operator=(const DevicePeers&) = delete;
  ~DevicePeers();

  int device() const { return config_.device; }
  const DeviceRuntime::SharedHandle& handle() const { return handle_; }
  void open(const std::vector<DeviceRuntime::SharedHandle>& handles);  // of all local ranks

  // Pieces are numbered over all calls; a call takes `count` consecutive numbers. Its number among
  // the calls goes with the hash of what is called.
  struct Ticket {
    uint32_t call, first_piece, num_pieces;
  };
  Ticket take(uint32_t num_pieces, uint64_t hash);
  // The local rank, if any, that has called something else as this call, as far as it can be told.
  std::optional<int> disagreeing(Ticket ticket, uint64_t hash) const;
  // Whether the call waits for something that this local rank has not done.
  bool waits_for(int local_rank, Ticket ticket) const;

  // Elements [begin, begin + count) of a piece that one rank sums. `piece` is its global number.
  struct Shard {
    size_t begin, count;
  };
  void reduce_scatter(uint32_t piece, const std::byte* data, size_t count, Shard own, DType dtype,
                      ReduceOp op, int divisor, DeviceRuntime::Stream stream);
  std::byte* shard_memory(uint32_t piece, Shard own, size_t element) const {
    return slots_[static_cast<size_t>(config_.local_rank)] + offset(piece) + own.begin * element;
  }
  // `shards` of all local ranks; each is final in its owner's slot once the owner's stream is here.
  void allgather(uint32_t piece, std::byte* data, std::span<const Shard> shards, size_t element,
                 DeviceRuntime::Stream stream);

  // Enqueued last of a call, on `out`.
  void end(DeviceRuntime::Stream stream) { config_.runtime->record(last_, stream); }

  // Lets all streams that wait for counters go on, from now on: the group has failed.
  void abandon() noexcept;

 private:
  struct Counters;

  Counters& counters(int local_rank) const;
  void release();
  bool all_done() const;
  static size_t offset(uint32_t piece) { return piece % kSlots * kSlotBytes; }
  void await(DeviceRuntime::Flag Counters::* counter, uint32_t piece, DeviceRuntime::Stream stream);
  void publish(DeviceRuntime::Flag Counters::* counter, uint32_t piece,
               DeviceRuntime::Stream stream);

  PeersConfig config_;
  DeviceRuntime::SharedHandle handle_{};
  std::vector<std::byte*> slots_;  // by local rank
  DeviceRuntime::Event last_;      // of the last call
  uint32_t next_call_ = 0;
  std::atomic<uint32_t> next_piece_{0};
  std::jthread releaser_;  // runs from abandon() on
};

}  // namespace hier
