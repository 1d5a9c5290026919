// Allreduce where the devices of a node sum among themselves: only shards pass through the host.
#include <vector>

#include "group/device_calls.h"

namespace hier {

namespace {

// Tells the header of such a call from that of one through the host: ranks must not mix them.
constexpr uint32_t kBetweenDevices = 0x64657673;

// What each rank of the node owns of a piece, from its begin on.
std::vector<DeviceLocalStage::Shard> shards_of(const Plan& plan, Range piece, int local_size) {
  std::vector<DeviceLocalStage::Shard> shards;
  for (int owner = 0; owner < local_size; ++owner) {
    const Range shard = plan.shard(piece, owner);
    shards.push_back({shard.lo - piece.lo, shard.size()});
  }
  return shards;
}

}  // namespace

bool DeviceCalls::works_between_devices(const Call& call) const {
  if (call.collective != Collective::allreduce || planner_.runs_over_all(call) || !stage_ ||
      stage_->device() != call.device->device || call.bytes() <= host_path_bytes()) {
    return false;
  }
  // Known to all ranks: whether every rank of every node owns a shard.
  const Plan plan = planner_.between_devices(call, DeviceLocalStage::kSlotBytes);
  const bool all_own = plan.rails * topology_.num_nodes == topology_.world_size;
  return stage_->supports(call.dtype, call.op, all_own);
}

std::unique_ptr<Run> DeviceCalls::make_between_devices(const Call& on_device, Clock::time_point now,
                                                       double timeout) {
  const Plan devices = planner_.between_devices(on_device, DeviceLocalStage::kSlotBytes);
  const bool network = topology_.num_nodes > 1;
  const size_t element = size_of(on_device.dtype);
  size_t own = 0;  // elements of this rank's shards, which pass through the host
  for (uint64_t k = 0; network && k < devices.num_pieces(); ++k) {
    own += devices.shard(devices.piece_at(k), topology_.local_rank).size();
  }

  const auto stage = std::make_shared<HostStaging>(pinned_, *on_device.device, own * element);
  stage->depends_on(stage_);
  Call call = on_device;
  call.data = stage->host();
  auto run = planner_.make_run(std::move(call), now, timeout);  // checks, algorithm, header
  run->header.extra ^= kBetweenDevices;
  Plan plan;
  plan.data = stage->host();
  plan.count = plan.result.hi = own;
  plan.piece = devices.piece / static_cast<size_t>(devices.rails);
  plan.dtype = on_device.dtype;
  plan.op = on_device.op;
  plan.divisor = on_device.op == ReduceOp::avg ? topology_.world_size : 1;
  if (network) plan.program = std::move(run->plan.program);  // of the rail, for any count
  run->plan = std::move(plan);
  run->device = stage;
  run->work->set_device(stage);
  const uint64_t hash = run->header.hash(0);
  const auto ticket = stage_->take(static_cast<uint32_t>(devices.num_pieces()), hash);
  run->between_devices = {stage_, ticket, hash, topology_.neighbours()};
  enqueue_between_devices(*run, on_device, devices);
  return run;
}

void DeviceCalls::enqueue_between_devices(Run& run, const Call& on_device, const Plan& devices) {
  HostStaging& stage = *run.device;
  const auto [runtime, device, caller, in, out] = stage.place();
  auto* data = static_cast<std::byte*>(on_device.data);
  const auto me = static_cast<size_t>(topology_.local_rank);
  const bool network = topology_.num_nodes > 1;
  const int divisor = network ? 1 : run.plan.divisor;
  const DType dtype = on_device.dtype;
  const size_t element = size_of(dtype);
  std::byte* host = stage.host();
  std::vector<std::vector<StagedCopy>> copies;

  const auto scatter = [&](uint32_t k) {
    const uint32_t number = run.between_devices->ticket.first_piece + k;
    const Range piece = devices.piece_at(k);
    const auto shards = shards_of(devices, piece, topology_.local_size);
    const auto own = shards[me];
    stage_->reduce_scatter(number, data + piece.lo * element, piece.size(), shards, dtype,
                           on_device.op, divisor, in);
    copies.emplace_back();
    if (network && own.count > 0) {
      const size_t bytes = own.count * element;
      copies.back().push_back({stage_->shard_memory(number, own, dtype), host, bytes});
      host += bytes;
    }
    stage.fetch(copies.back());
  };
  const auto gather = [&](uint32_t k) {
    if (copies[k].empty()) {
      stage.pass();
    } else {
      stage.put_back(copies[k]);
    }
    const Range piece = devices.piece_at(k);
    stage_->allgather(run.between_devices->ticket.first_piece + k, data + piece.lo * element,
                      piece.size(), shards_of(devices, piece, topology_.local_size), dtype, out);
  };

  stage.begin(run.call.use->leave_to_device());
  if (!network && stage_->allreduce(data, devices.count, dtype, on_device.op, divisor, out)) {
    stage.end();
    return;
  }
  // In an order in which each waits for what was enqueued before, for streams may share a queue.
  const auto pieces = static_cast<uint32_t>(devices.num_pieces());
  for (uint32_t k = 0; k < pieces + DeviceLocalStage::kSlots - 1; ++k) {
    if (k < pieces) scatter(k);
    if (k + 1 >= DeviceLocalStage::kSlots) gather(k + 1 - DeviceLocalStage::kSlots);
  }
  stage.end();
}

}  // namespace hier
