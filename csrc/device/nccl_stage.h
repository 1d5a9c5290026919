// The local stage by NCCL: its reduce-scatter and allgather, or on one node its allreduce.
//
// All of them belong to one communicator, and each runs behind the one that was enqueued before.
// NCCL's kernels wait on the GPU for those of the other ranks; two of them that run at once, or
// that two ranks run in different orders, may deadlock. Group enqueues the first pieces'
// reduce-scatters ahead, so that a piece is reduced while an earlier one is on its way through the
// network.
#pragma once

#include <array>

#include "device/local_stage.h"
#include "nccl/communicator.h"

namespace hier {

struct NcclStageConfig {
  DeviceRuntime* runtime = nullptr;
  int device = 0;
  int local_size = 1, local_rank = 0;
  nccl::UniqueId id{};   // the same on all ranks of the node
  double timeout = 300;  // seconds to join
};

class NcclStage final : public DeviceLocalStage {
 public:
  // Returns once all ranks of the node are here; throws as nccl::Communicator does.
  NcclStage(const nccl::Library& library, NcclStageConfig config);
  NcclStage(const NcclStage&) = delete;
  NcclStage& operator=(const NcclStage&) = delete;
  ~NcclStage() override;

  int device() const override { return config_.device; }
  bool supports(DType dtype, ReduceOp op, bool all_own) const override;
  Ticket take(uint32_t num_pieces, uint64_t hash) override;
  std::optional<int> disagreeing(Ticket, uint64_t) const override { return std::nullopt; }
  bool waits_for(int, Ticket, bool died) const override { return died; }
  void reduce_scatter(uint32_t piece, const std::byte* data, size_t count,
                      std::span<const Shard> shards, DType dtype, ReduceOp op, int divisor,
                      DeviceRuntime::Stream stream) override;
  std::byte* shard_memory(uint32_t piece, Shard, DType) const override {
    return slots_[piece % kSlots].shard;
  }
  void allgather(uint32_t piece, std::byte* data, size_t count, std::span<const Shard> shards,
                 DType dtype, DeviceRuntime::Stream stream) override;
  bool allreduce(std::byte* data, size_t count, DType dtype, ReduceOp op, int divisor,
                 DeviceRuntime::Stream stream) override;
  void abandon() noexcept override;

 private:
  struct Slot {
    std::byte* whole = nullptr;  // a piece whose size is no multiple of the ranks, padded
    std::byte* shard = nullptr;
    DeviceRuntime::Event gathered = nullptr;
  };
  bool is_even(size_t count, std::span<const Shard> shards) const;
  void start(const nccl::Call& call, DeviceRuntime::Stream stream);

  NcclStageConfig config_;
  nccl::Communicator comm_;
  DeviceRuntime::Event last_ = nullptr;  // NCCL's last operation has ended
  std::byte* memory_ = nullptr;
  std::array<Slot, kSlots> slots_;
  uint32_t next_call_ = 0, next_piece_ = 0;
};

}  // namespace hier
