// Pieces through NCCL.
#include "device/nccl_stage.h"

#include "base/error.h"

namespace hier {

namespace {

using nccl::Collective;
using nccl::DataType;

std::optional<DataType> data_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return DataType::float64;
    case DType::f32:
      return DataType::float32;
    case DType::f16:
      return DataType::float16;
    case DType::bf16:
      return DataType::bfloat16;
    case DType::i64:
      return DataType::int64;
    case DType::i32:
      return DataType::int32;
    case DType::i8:
      return DataType::int8;
    case DType::u8:
      return DataType::uint8;
    default:
      return std::nullopt;
  }
}

std::optional<nccl::ReduceOp> operation(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::avg:  // divided at the end, by the number of all ranks
      return nccl::ReduceOp::sum;
    case ReduceOp::prod:
      return nccl::ReduceOp::prod;
    case ReduceOp::min:
      return nccl::ReduceOp::min;
    case ReduceOp::max:
      return nccl::ReduceOp::max;
    default:
      return std::nullopt;
  }
}

nccl::Options options(const NcclStageConfig& config) {
  nccl::Options chosen;
  chosen.timeout = config.timeout;
  chosen.use_gpu = [runtime = config.runtime, device = config.device] {
    runtime->set_device(device);
  };
  return chosen;
}

}  // namespace

NcclStage::NcclStage(const nccl::Library& library, NcclStageConfig config)
    : config_(config),
      comm_(library, config.id, config.local_rank, config.local_size, options(config)) {
  last_ = config_.runtime->create_event(config_.device);
  memory_ = config_.runtime->allocate(config_.device, 2 * kSlots * kSlotBytes);
  for (uint32_t i = 0; i < kSlots; ++i) {
    slots_[i].whole = memory_ + 2 * i * kSlotBytes;
    slots_[i].shard = slots_[i].whole + kSlotBytes;
    slots_[i].gathered = config_.runtime->create_event(config_.device);
  }
}

NcclStage::~NcclStage() {
  try {
    config_.runtime->synchronize(last_);
    comm_.close();
  } catch (...) {
    // A device that has failed, on which nothing runs any more; or the others have gone.
  }
  for (const Slot& slot : slots_) config_.runtime->destroy_event(slot.gathered);
  config_.runtime->destroy_event(last_);
  config_.runtime->free(memory_);
}

bool NcclStage::supports(DType dtype, ReduceOp op, bool all_own) const {
  return all_own && data_type(dtype) && operation(op);
}

DeviceLocalStage::Ticket NcclStage::take(uint32_t num_pieces, uint64_t) {
  const Ticket ticket{next_call_++, next_piece_, num_pieces};
  next_piece_ += num_pieces;
  return ticket;
}

bool NcclStage::is_even(size_t count, std::span<const Shard> shards) const {
  return shards.front().count * shards.size() == count;
}

void NcclStage::start(const nccl::Call& call, DeviceRuntime::Stream stream) {
  const CurrentDevice current(*config_.runtime, config_.device);  // NCCL leaves it as it finds it
  config_.runtime->wait(stream, last_);
  comm_.start(call, stream);
  config_.runtime->record(last_, stream);
}

bool NcclStage::allreduce(std::byte* data, size_t count, DType dtype, ReduceOp op, int divisor,
                          DeviceRuntime::Stream stream) {
  start({Collective::all_reduce, data, data, count, *data_type(dtype), *operation(op)}, stream);
  if (divisor == 1) return true;
  void* const out[] = {data};
  const void* const in[] = {data};
  config_.runtime->reduce_many(dtype, op, out, in, count, divisor, stream);
  return true;
}

void NcclStage::reduce_scatter(uint32_t piece, const std::byte* data, size_t count,
                               std::span<const Shard> shards, DType dtype, ReduceOp op, int divisor,
                               DeviceRuntime::Stream stream) {
  DeviceRuntime& runtime = *config_.runtime;
  const Slot& slot = slots_[piece % kSlots];
  runtime.wait(stream, slot.gathered);
  const std::byte* source = data;
  if (!is_even(count, shards)) {  // what is behind the end is summed as well, and not used
    runtime.copy(slot.whole, data, count * size_of(dtype), stream);
    source = slot.whole;
  }
  const size_t each = shards.front().count;
  start({Collective::reduce_scatter, source, slot.shard, each, *data_type(dtype), *operation(op)},
        stream);
  if (divisor == 1) return;
  void* const out[] = {slot.shard};
  const void* const in[] = {slot.shard};
  runtime.reduce_many(dtype, op, out, in, each, divisor, stream);
}

void NcclStage::allgather(uint32_t piece, std::byte* data, size_t count,
                          std::span<const Shard> shards, DType dtype,
                          DeviceRuntime::Stream stream) {
  DeviceRuntime& runtime = *config_.runtime;
  const Slot& slot = slots_[piece % kSlots];
  const bool even = is_even(count, shards);
  start({Collective::all_gather, slot.shard, even ? data : slot.whole, shards.front().count,
         *data_type(dtype)},
        stream);
  if (!even) runtime.copy(data, slot.whole, count * size_of(dtype), stream);
  runtime.record(slot.gathered, stream);
}

void NcclStage::abandon() noexcept { comm_.abort(); }

}  // namespace hier
