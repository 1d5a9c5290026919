// How the devices of a node reduce and gather among themselves, on streams: by mapped memory
// (peers.h) or by NCCL (nccl_stage.h). Pieces are numbered over all calls, so that a stage can
// cycle through slots.
#pragma once

#include <optional>
#include <span>

#include "device/runtime.h"

namespace hier {

class DeviceLocalStage {
 public:
  static constexpr size_t kSlotBytes = 4 << 20;  // of one rank's contribution to one piece
  static constexpr uint32_t kSlots = 4;          // pieces in flight

  // Elements [begin, begin + count) of a piece, which one rank reduces.
  struct Shard {
    size_t begin, count;
  };
  // A call's number, and its consecutive pieces.
  struct Ticket {
    uint32_t call, first_piece, num_pieces;
  };

  virtual ~DeviceLocalStage() = default;

  virtual int device() const = 0;
  // `all_own`: each rank of the node owns a shard.
  virtual bool supports(DType dtype, ReduceOp op, bool all_own) const = 0;

  // For a call, by the thread that makes it; `hash` is of what is called.
  virtual Ticket take(uint32_t num_pieces, uint64_t hash) = 0;
  // The local rank, if any, that has called something else as this call, as far as it can be told.
  virtual std::optional<int> disagreeing(Ticket ticket, uint64_t hash) const = 0;
  // Whether the call still needs this local rank, which has died, or has left in good order.
  virtual bool waits_for(int local_rank, Ticket ticket, bool died) const = 0;

  // Of a piece, in order; `shards` of all local ranks. Behind reduce_scatter, which begins on one
  // stream, the own shard is in shard_memory. Before allgather, on another stream, it is final.
  virtual void reduce_scatter(uint32_t piece, const std::byte* data, size_t count,
                              std::span<const Shard> shards, DType dtype, ReduceOp op, int divisor,
                              DeviceRuntime::Stream stream) = 0;
  virtual std::byte* shard_memory(uint32_t piece, Shard own, DType dtype) const = 0;
  virtual void allgather(uint32_t piece, std::byte* data, size_t count,
                         std::span<const Shard> shards, DType dtype,
                         DeviceRuntime::Stream stream) = 0;

  // Of a whole call, in place of both where the group is one node; false where a stage has no such.
  virtual bool allreduce(std::byte*, size_t, DType, ReduceOp, int /*divisor*/,
                         DeviceRuntime::Stream) {
    return false;
  }

  // Lets all streams that wait in this stage go on, from now on: the group has failed.
  virtual void abandon() noexcept = 0;
  // Whether any rank of the node has done so. What streams have got since may be anything, even
  // where this rank has not yet heard of the failure.
  virtual bool abandoned() const { return false; }
};

}  // namespace hier
