// Calls whose whole buffer goes through the host.
#include "group/device_calls.h"

#include <algorithm>

#include "base/error.h"
#include "group/check.h"
#include "group/parts.h"

namespace hier {

namespace {

// A copy of fewer bytes, and the flag behind it, take longer to enqueue than to make.
constexpr size_t kLeastCopy = 512 << 10;

using StagedCopies = std::vector<std::vector<StagedCopy>>;  // of a piece each, or of several

// A buffer on the device, and its image in the stage, where pieces lie one after another.
struct HostMirror {
  std::byte* device;
  std::byte* host;
  size_t element;

  StagedCopy part(size_t lo, size_t hi) const { return part(lo, lo, hi - lo); }
  StagedCopy part(size_t on_device, size_t on_host, size_t count) const {
    return {device + on_device * element, host + on_host * element, count * element};
  }
};

// Which elements this rank puts in, and which it gets: nothing where it has them all.
struct RankRanges {
  Range in, out;
};

RankRanges ranges_of(const Call& call, int rank, int world_size) {
  const CollectiveInfo& what = info(call.collective);
  const auto range = [&](Holders holders) {
    return range_of(holders, call.bounds, call.count, rank, call.root, world_size);
  };
  const Range in = range(what.before);
  const bool has_all = what.before == Holders::root && rank == call.root;
  return {in, has_all ? Range{0, 0} : range(what.after)};
}

// What of `range` lies in elements [lo, hi) of the image: whole pieces of the plan.
void add_copies(std::vector<StagedCopy>& copies, const HostMirror& image, const Plan& plan,
                Range range, size_t lo, size_t hi) {
  if (plan.slices == 1) {
    lo = std::max(range.lo, lo), hi = std::min(range.hi, hi);
    if (lo < hi) copies.push_back(image.part(lo, hi));
    return;
  }
  const auto slices = static_cast<size_t>(plan.slices);
  const size_t part = plan.count / slices;
  for (; lo < hi; lo += plan.piece) {
    const size_t slice = std::min(plan.piece, hi - lo) / slices;
    for (size_t r = range.lo / part; r < range.hi / part; ++r)
      copies.push_back(image.part(r * part + lo / slices, lo + r * slice, slice));
  }
}

}  // namespace

std::unique_ptr<Run> DeviceCalls::make_run(const Call& call, Clock::time_point now,
                                           double timeout) {
  check_memory(call, topology_.rank);
  if (topology_.world_size == 1) return planner_.make_run(call, now, timeout);
  const CurrentDevice current(*call.device->runtime, call.device->device);
  return works_between_devices(call) ? make_between_devices(call, now, timeout)
                                     : make_staged(call, now, timeout);
}

std::unique_ptr<Run> DeviceCalls::make_staged(const Call& on_device, Clock::time_point now,
                                              double timeout) {
  if (on_device.collective == Collective::alltoall) check_call(on_device, topology_.world_size);
  Call call = on_device;
  const size_t element = size_of(call.dtype), output = call.count * element;
  const auto stage =
      std::make_shared<HostStaging>(pinned_, *call.device, output + call.input_count * element);
  call.data = stage->host();
  call.input = stage->host() + output;
  auto run = planner_.make_run(std::move(call), now, timeout);
  run->device = stage;
  run->work->set_device(stage);
  enqueue_staged(*run, on_device);
  return run;
}

void DeviceCalls::enqueue_staged(Run& run, const Call& on_device) {
  const Call& call = run.call;
  const size_t element = size_of(call.dtype);
  const HostMirror data{static_cast<std::byte*>(on_device.data), static_cast<std::byte*>(call.data),
                        element};
  const int rank = topology_.rank, p = topology_.world_size;
  const size_t num_pieces = run.plan.num_pieces();
  const size_t at_once = std::max<size_t>(1, kLeastCopy / (run.plan.piece * element));
  StagedCopies in((num_pieces + at_once - 1) / at_once), out(in.size());
  if (call.collective == Collective::alltoall) {
    const HostMirror input{static_cast<std::byte*>(const_cast<void*>(on_device.input)),
                           static_cast<std::byte*>(const_cast<void*>(call.input)), element};
    in.front() = {input.part(0, call.input_count)};
    out.front() = {data.part(0, call.count)};
  } else {
    const RankRanges whole = ranges_of(call, rank, p);
    for (size_t k = 0; k < in.size(); ++k) {
      const size_t each = at_once * run.plan.piece;
      const size_t lo = k * each, hi = std::min(lo + each, call.count);
      add_copies(in[k], data, run.plan, whole.in, lo, hi);
      add_copies(out[k], data, run.plan, whole.out, lo, hi);
    }
  }
  HostStaging& stage = *run.device;
  stage.begin(run.call.use->leave_to_device());
  const auto size = [&](size_t k) {
    return static_cast<uint32_t>(std::min(at_once, num_pieces - k * at_once));
  };
  for (size_t k = 0; k < in.size(); ++k) stage.fetch(in[k], size(k));
  stage.fetched_all();
  for (size_t k = 0; k < out.size(); ++k) stage.put_back(out[k], size(k));
  stage.end();
}

void DeviceCalls::raise_on_failure(const std::shared_ptr<SharedDeviceMemory>& memory,
                                   size_t offset) {
  const std::lock_guard lock(mutex_);
  std::erase_if(raised_on_failure_, [](const auto& entry) { return entry.first.expired(); });
  raised_on_failure_.emplace_back(memory, offset);
}

void DeviceCalls::let_go() {
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [memory, offset] : raised_on_failure_) {
      if (const auto kept = memory.lock()) kept->raise_word(offset);
    }
  }
  if (stage_) stage_->abandon();
}

}  // namespace hier
