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

#include <memory>
#include <thread>
#include <vector>

#include "device/local_stage.h"
#include "device/mapped_memory.h"

namespace hier {

struct PeersConfig {
  DeviceRuntime* runtime = nullptr;
  int device = 0;
  int local_size = 1, local_rank = 0;
  // counter_bytes() of each local rank, in shared memory that is zero and outlives the stage.
  std::byte* counters = nullptr;
};

class MappedPeerStage final : public DeviceLocalStage {
 public:
  static size_t counter_bytes();

  // Throws CudaError where there is no memory that others can map.
  explicit MappedPeerStage(PeersConfig config);
  MappedPeerStage(const MappedPeerStage&) = delete;
  MappedPeerStage& operator=(const MappedPeerStage&) = delete;
  ~MappedPeerStage() override;

  int device() const override { return config_.device; }
  const DeviceRuntime::SharedHandle& handle() const { return slots_->handle(); }
  void open(const std::vector<DeviceRuntime::SharedHandle>& handles);  // of all local ranks

  bool supports(DType, ReduceOp, bool) const override { return true; }
  Ticket take(uint32_t num_pieces, uint64_t hash) override;
  std::optional<int> disagreeing(Ticket ticket, uint64_t hash) const override;
  bool waits_for(int local_rank, Ticket ticket, bool died) const override;
  void reduce_scatter(uint32_t piece, const std::byte* data, size_t count,
                      std::span<const Shard> shards, DType dtype, ReduceOp op, int divisor,
                      DeviceRuntime::Stream stream) override;
  std::byte* shard_memory(uint32_t piece, Shard own, DType dtype) const override {
    return slots_->own() + offset(piece) + own.begin * size_of(dtype);
  }
  void allgather(uint32_t piece, std::byte* data, size_t count, std::span<const Shard> shards,
                 DType dtype, DeviceRuntime::Stream stream) override;
  void abandon() noexcept override;
  bool abandoned() const override;

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
  std::unique_ptr<MappedMemory> slots_;
  std::array<DeviceRuntime::Event, kSlots> emptied_{};  // by slot: its last allgather has ended
  uint32_t next_call_ = 0;
  std::atomic<uint32_t> next_piece_{0};
  std::jthread releaser_;  // runs from abandon() on
};

}  // namespace hier
