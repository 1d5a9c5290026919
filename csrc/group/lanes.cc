// Turns of the lanes, and the ends of runs.
#include "group/lanes.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace hier {

namespace {

// A run whose result is in device memory: whether it is there. Throws MismatchError.
bool has_arrived(const Run& run) {
  if (!run.device->ended()) return false;
  if (!run.between_devices) return true;
  const auto& [stage, ticket, hash, ranks] = *run.between_devices;
  if (const auto other = stage->disagreeing(ticket, hash)) {
    throw MismatchError("ranks disagree: rank " + std::to_string(run.header.source) + " called " +
                        describe(run.header) + ", rank " +
                        std::to_string(ranks[static_cast<size_t>(*other)]) +
                        " called something else. All ranks must call the same collectives with "
                        "the same arguments in one order");
  }
  return true;
}

}  // namespace

void TrafficCounters::take(Channels& channels) {
  for (const auto& channel : channels) {
    if (!channel || channel->bytes_sent == 0) continue;
    auto& counter = channel->over_network() ? network_ : shared_;
    counter.fetch_add(std::exchange(channel->bytes_sent, 0), std::memory_order_relaxed);
  }
}

Lanes::Lanes(std::vector<Channels> channels, const std::shared_ptr<Arena>& arena, int local_rank,
             Doorbells* bells)
    : lanes_(channels.size()) {
  for (RunHeader& header : history_) header.run = ~0u;  // no run
  for (size_t i = 0; i < lanes_.size(); ++i) {
    Lane& lane = lanes_[i];
    lane.channels = std::move(channels[i]);
    lane.engine = std::make_unique<Engine>(pointers(lane.channels));
    if (!arena) continue;
    lane.local = std::make_unique<LocalStage>(arena, static_cast<int>(i), local_rank, bells);
  }
}

std::unique_ptr<Run>& Lanes::make_room(uint32_t run) {
  return lanes_[run % lanes_.size()].runs.emplace_back();
}

bool Lanes::turn(TrafficCounters& traffic, const std::function<void(Run&)>& ended) {
  bool moved = false;
  for (Lane& lane : lanes_) {
    if (!lane.runs.empty()) moved |= advance(lane, traffic, ended);
  }
  if (trailing_.empty()) return moved;
  for (const auto& run : trailing_) {
    if (!has_arrived(*run)) continue;
    finish(*run, ended);
    moved = true;
  }
  std::erase_if(trailing_, [](const auto& run) { return run->work->done(); });
  return moved;
}

bool Lanes::advance(Lane& lane, TrafficCounters& traffic, const std::function<void(Run&)>& ended) {
  Run& run = *lane.runs.front();
  bool moved = false;
  if (!run.execution) {
    if (run.call.use && !run.call.use->may_begin()) return false;
    begin(lane, run);
    moved = true;
  }
  moved |= run.execution->progress();
  moved |= lane.engine->progress();
  // A finished run may have bytes on the engine still: a spill, or the padding of a send.
  if (!run.execution->finished() || !lane.engine->idle()) return moved;
  traffic.add_shared(run.execution->shared_bytes());
  traffic.take(lane.channels);
  std::unique_ptr<Run> over = std::move(lane.runs.front());
  lane.runs.pop_front();
  if (over->device && !over->device->ended()) {
    trailing_.push_back(std::move(over));
  } else {
    finish(*over, ended);
  }
  return true;
}

void Lanes::begin(Lane& lane, Run& run) {
  if (run.aligned) std::memcpy(run.aligned.get(), run.call.data, run.call.bytes());
  // A run without elements synchronises nobody: it must not take a place for its header.
  const bool staged = run.plan.in_node() && run.plan.count > 0;
  const uint64_t run_of_lane = staged ? lane.local_runs++ : 0;
  run.execution.emplace(std::move(run.plan), &run.header, lane.engine.get(), lane.local.get(),
                        run.digest, run_of_lane, run.device.get());
}

void Lanes::finish(Run& run, const std::function<void(Run&)>& ended) {
  if (run.aligned) std::memcpy(run.call.data, run.aligned.get(), run.call.bytes());
  history_[run.header.run % history_.size()] = run.header;
  ended(run);
}

bool Lanes::idle() const {
  return trailing_.empty() && std::all_of(lanes_.begin(), lanes_.end(),
                                          [](const Lane& lane) { return lane.runs.empty(); });
}

bool Lanes::waits_for_device() const {
  if (!trailing_.empty()) return true;
  return std::any_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) {
    if (lane.runs.empty()) return false;
    const auto& execution = lane.runs.front()->execution;
    return execution && execution->waits_for_device();
  });
}

void Lanes::blocked_on(std::vector<pollfd>& fds) const {
  for (const Lane& lane : lanes_) lane.engine->blocked_on(fds);
}

size_t Lanes::num_runs() const {
  size_t runs = trailing_.size();
  for (const Lane& lane : lanes_) runs += lane.runs.size();
  return runs;
}

std::vector<std::unique_ptr<Run>> Lanes::take_all() {
  trailing_.reserve(num_runs());  // from here on nothing throws
  for (Lane& lane : lanes_) {
    if (lane.local) lane.local->say_failed();
    for (auto& run : lane.runs) trailing_.push_back(std::move(run));
    lane.runs.clear();
  }
  return std::exchange(trailing_, {});
}

void Lanes::close() {
  lanes_.clear();
  trailing_.clear();
}

void Lanes::for_each_run(const std::function<void(Run&)>& visit) const {
  for (const Lane& lane : lanes_) {
    for (const auto& run : lane.runs) visit(*run);
  }
  for (const auto& run : trailing_) visit(*run);
}

void Lanes::for_each_current(const std::function<void(Run&)>& visit) const {
  for (const Lane& lane : lanes_) {
    if (!lane.runs.empty()) visit(*lane.runs.front());
  }
  for (const auto& run : trailing_) visit(*run);
}

}  // namespace hier
