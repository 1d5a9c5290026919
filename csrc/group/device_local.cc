// Allreduce where the devices of a node sum among themselves: only shards pass through the host.
#include <algorithm>

#include "group/device_calls.h"
#include "group/shards.h"

namespace hier {

namespace {

// Tells the header of such a call from that of one through the host: ranks must not mix them.
constexpr uint32_t kBetweenDevices = 0x64657673;

}  // namespace

// How a buffer is cut: into pieces of one slot, and each piece into one shard for each rail.
struct DeviceCalls::Cut {
  size_t count, piece;  // elements
  size_t element;
  int rails, local_size;

  size_t num_pieces() const { return (count + piece - 1) / piece; }
  size_t begin(size_t k) const { return k * piece; }
  size_t size(size_t k) const { return std::min(piece, count - begin(k)); }

  // All but the last piece have shards of piece / rails elements.
  std::vector<DeviceLocalStage::Shard> shards(size_t k) const {
    std::vector<DeviceLocalStage::Shard> result;
    for (int owner = 0; owner < local_size; ++owner) {
      const auto [begin, count] = local_shard_of(size(k), rails, owner);
      result.push_back({begin, count});
    }
    return result;
  }
};

bool DeviceCalls::works_between_devices(const Call& call) const {
  if (call.collective != Collective::allreduce || planner_.runs_over_all(call) || !stage_ ||
      stage_->device() != call.device->device || call.bytes() <= host_path_bytes()) {
    return false;
  }
  // Known to all ranks: whether every rank of every node owns a shard.
  const Cut plan = cut(call);
  const bool all_own = plan.rails * topology_.num_nodes == topology_.world_size;
  return stage_->supports(call.dtype, call.op, all_own);
}

DeviceCalls::Cut DeviceCalls::cut(const Call& call) const {
  const int most = config_.rails > 0 ? std::min(config_.rails, topology_.smallest_node)
                                     : topology_.smallest_node;
  const int rails = topology_.num_nodes == 1 ? topology_.local_size : most;
  const size_t element = size_of(call.dtype);
  const size_t unit = 16 * static_cast<size_t>(rails);
  return {call.count, DeviceLocalStage::kSlotBytes / element / unit * unit, element, rails,
          topology_.local_size};
}

std::unique_ptr<Run> DeviceCalls::make_between_devices(const Call& on_device, Clock::time_point now,
                                                       double timeout) {
  const Cut cut = this->cut(on_device);
  const bool network = topology_.num_nodes > 1;
  size_t own = 0;  // elements of this rank's shards, which pass through the host
  const auto me = static_cast<size_t>(topology_.local_rank);
  for (size_t k = 0; network && k < cut.num_pieces(); ++k) own += cut.shards(k)[me].count;

  const auto stage = std::make_shared<HostStaging>(pinned_, *on_device.device, own * cut.element);
  stage->depends_on(stage_);
  Call call = on_device;
  call.data = stage->host();
  auto run = planner_.make_run(std::move(call), now, timeout);  // checks, algorithm, header
  run->header.extra ^= kBetweenDevices;
  Plan plan;
  plan.data = stage->host();
  plan.count = plan.result.hi = own;
  plan.piece = cut.piece / static_cast<size_t>(cut.rails);
  plan.dtype = on_device.dtype;
  plan.op = on_device.op;
  plan.divisor = on_device.op == ReduceOp::avg ? topology_.world_size : 1;
  if (network) plan.program = std::move(run->plan.program);  // of the rail, for any count
  run->plan = std::move(plan);
  run->device = stage;
  run->work->set_device(stage);
  const uint64_t hash = run->header.hash(0);
  const auto ticket = stage_->take(static_cast<uint32_t>(cut.num_pieces()), hash);
  run->between_devices = {stage_, ticket, hash, topology_.neighbours()};
  enqueue_between_devices(*run, on_device, cut);
  return run;
}

void DeviceCalls::enqueue_between_devices(Run& run, const Call& on_device, const Cut& cut) {
  HostStaging& stage = *run.device;
  const auto [runtime, device, caller, in, out] = stage.place();
  auto* data = static_cast<std::byte*>(on_device.data);
  const auto me = static_cast<size_t>(topology_.local_rank);
  const bool network = topology_.num_nodes > 1;
  const int divisor = network ? 1 : run.plan.divisor;
  std::byte* host = stage.host();
  std::vector<std::vector<StagedCopy>> copies;

  const auto scatter = [&](size_t k) {
    const uint32_t piece = run.between_devices->ticket.first_piece + static_cast<uint32_t>(k);
    const auto shards = cut.shards(k);
    const auto own = shards[me];
    stage_->reduce_scatter(piece, data + cut.begin(k) * cut.element, cut.size(k), shards,
                           on_device.dtype, on_device.op, divisor, in);
    copies.emplace_back();
    if (network && own.count > 0) {
      const size_t bytes = own.count * cut.element;
      copies.back().push_back({stage_->shard_memory(piece, own, on_device.dtype), host, bytes});
      host += bytes;
    }
    stage.fetch(copies.back());
  };
  const auto gather = [&](size_t k) {
    if (copies[k].empty()) {
      stage.pass();
    } else {
      stage.put_back(copies[k]);
    }
    const uint32_t piece = run.between_devices->ticket.first_piece + static_cast<uint32_t>(k);
    stage_->allgather(piece, data + cut.begin(k) * cut.element, cut.size(k), cut.shards(k),
                      on_device.dtype, out);
  };

  stage.begin(run.call.use->leave_to_device());
  if (!network && stage_->allreduce(data, cut.count, on_device.dtype, on_device.op, divisor, out)) {
    stage.end();
    return;
  }
  // In an order in which each waits for what was enqueued before, for streams may share a queue.
  const size_t pieces = cut.num_pieces();
  for (size_t k = 0; k < pieces + DeviceLocalStage::kSlots - 1; ++k) {
    if (k < pieces) scatter(k);
    if (k + 1 >= DeviceLocalStage::kSlots) gather(k + 1 - DeviceLocalStage::kSlots);
  }
  stage.end();
}

}  // namespace hier
