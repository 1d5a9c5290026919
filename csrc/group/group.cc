// Calls on their way down, and the life of a group.
#include "group/group.h"

#include <cstring>
#include <thread>

#include "base/error.h"
#include "transport/tcp.h"

namespace hier {

namespace {

constexpr size_t kControlBuffer = 4 * sizeof(ControlFrame);  // there may be a link to every rank

// In a group of one rank an alltoall is a copy, and nothing else moves.
void copy_alone(const Call& call, const Plan& plan) {
  if (plan.keep.bytes == 0) return;
  void* const to = plan.data + plan.keep.to;
  const void* const from = plan.input + plan.keep.from;
  if (call.device) {
    call.device->runtime->copy(to, from, plan.keep.bytes, call.device->caller);
  } else {
    std::memmove(to, from, plan.keep.bytes);  // they may be one array
  }
}

}  // namespace

Group::Group(GroupConfig config, Connections connections)
    : config_(std::move(config)),
      topology_(config_.rank, config_.node_of_rank),
      on_demand_(std::move(connections.connector), config_.node_of_rank.size()),
      timeout_(config_.timeout) {
  if (topology_.local_size > 1) {
    const auto layout = ArenaLayout::plan(topology_.local_size, config_.lanes);
    arena_ = std::make_shared<Arena>(std::move(connections.arena), layout);
    bells_ =
        Doorbells(arena_->sleep_words(), std::move(connections.doorbells), topology_.local_rank);
  }
  const size_t slot_bytes = arena_ ? arena_->layout().slot_bytes : ArenaLayout::kSlotBytes;
  planner_ = std::make_unique<Planner>(config_, topology_, slot_bytes);
  device_calls_ = std::make_unique<DeviceCalls>(config_, topology_, *planner_);
  // To let go of the devices may wait for their streams, and those for the flags of all runs: so
  // what is pending ends first.
  const auto at_failure = [this] {
    driver_->accept_pending();
    device_calls_->let_go();
  };
  member_ = std::make_unique<Member>(config_, topology_, open_links(std::move(connections)), arena_,
                                     &bells_, at_failure);
  driver_ = std::make_unique<Driver>(*member_, bells_, topology_.rank, config_.ranks_on_host);
}

Links Group::open_links(Connections connections) {
  Links links;
  for (Fd& socket : connections.control) {
    links.control.push_back(
        socket ? std::make_unique<TcpChannel>(std::move(socket), /*checked=*/false, kControlBuffer)
               : nullptr);
  }
  for (int i = 0; i < config_.lanes; ++i)
    links.lanes.push_back(open_channels(i, connections.data[i]));
  links.messages = open_channels(config_.lanes, connections.data[config_.lanes]);
  return links;
}

Channels Group::open_channels(int index, std::vector<Fd>& sockets) {
  Channels channels(sockets.size());
  for (size_t rank = 0; rank < channels.size(); ++rank) {
    channels[rank] = open_channel(static_cast<int>(rank), std::move(sockets[rank]));
  }
  if (arena_) open_rings(*arena_, index, topology_, bells_, channels);
  return channels;
}

std::unique_ptr<Channel> Group::open_channel(int rank, Fd socket) {
  if (socket) return std::make_unique<TcpChannel>(std::move(socket), config_.checksum);
  if (!on_demand_ || topology_.same_node(rank)) return nullptr;
  return on_demand_.make_channel(rank, config_.checksum);
}

Group::~Group() { close(); }

void Group::set_timeout(double seconds) {
  check_member();
  if (!(seconds > 0)) throw UsageError("timeout: must be a positive number of seconds");
  timeout_.store(seconds, std::memory_order_relaxed);
}

Planner& Group::planner() const {
  check_member();
  return *planner_;
}

DeviceCalls& Group::device_calls() const {
  check_member();
  return *device_calls_;
}

void Group::check_usable() const {
  check_member();
  driver_->check_usable();
}

std::unique_ptr<Run> Group::make_run(Call call) {
  check_usable();
  const auto now = Clock::now();
  if (!call.device) return planner_->make_run(std::move(call), now, timeout());
  try {
    return device_calls_->make_run(call, now, timeout());
  } catch (const CudaError& error) {  // the other ranks must not wait for us
    abort("rank " + std::to_string(topology_.rank) + ": " + error.what());
    throw;
  }
}

void Group::run(Call call) {
  if (call.device) {
    wait(*start(std::move(call)));
    return;
  }
  if (!call.use && !order_.empty()) call.use = claim(ranges_of(call));
  auto run = make_run(std::move(call));
  if (topology_.world_size == 1) return copy_alone(run->call, run->plan);
  const auto work = run->work;
  driver_->finish(*work, driver_->submit(std::move(run), Driver::Waited::yes));
}

std::shared_ptr<Work> Group::start(Call call) {
  if (call.use || topology_.world_size == 1) return begin(std::move(call));
  const auto ranges = ranges_of(call);
  const auto use = call.use = claim(ranges);
  auto work = begin(std::move(call));
  publish(use, ranges);
  return work;
}

std::shared_ptr<Work> Group::begin(Call call) {
  check_member();
  // Before anything is on the device's streams.
  if (call.device && topology_.world_size > 1) driver_->check_admission();
  auto run = make_run(std::move(call));
  const auto work = run->work;
  if (topology_.world_size == 1) {
    copy_alone(run->call, run->plan);
    work->finish(nullptr);
    return work;
  }
  try {
    driver_->leave(driver_->submit(std::move(run), Driver::Waited::no), /*try_first=*/false);
  } catch (...) {  // refused meanwhile, with copies of the caller's memory under way
    if (work->device()) join_after_failure(*work->device());
    throw;
  }
  return work;
}

std::shared_ptr<Transfer> Group::make_transfer(const Message& message,
                                               const std::shared_ptr<Work>& work) {
  check_usable();
  return member_->make_transfer(message, work, Clock::now(), timeout());
}

std::shared_ptr<Work> Group::run(const Message& message) {
  auto work = make_work();
  driver_->finish(*work, driver_->submit(make_transfer(message, work), Driver::Waited::yes));
  return work;
}

// What can be moved at once is, in the caller's thread: a small message needs no hand-off.
std::shared_ptr<Work> Group::start(const Message& message) {
  auto work = make_work();
  driver_->leave(driver_->submit(make_transfer(message, work), Driver::Waited::no),
                 /*try_first=*/true);
  return work;
}

bool Group::wait(Work& work, double seconds) {
  check_member();
  return driver_->wait(work, seconds);
}

std::shared_ptr<SharedMapping> Group::add_symmetric(int fd, size_t bytes) {
  check_member();
  auto mapping = SharedMapping::open(fd, bytes * static_cast<size_t>(topology_.local_size));
  planner_->symmetric().add(mapping, bytes);
  return mapping;
}

std::vector<std::shared_ptr<MemoryUse>> Group::uses_of(std::span<const ByteRange> ranges) {
  check_usable();
  return order_.uses_of(ranges);
}

std::shared_ptr<MemoryUse> Group::claim(std::span<const ByteRange> ranges) {
  auto use = std::make_shared<MemoryUse>();
  use->earlier = uses_of(ranges);
  return use;
}

void Group::publish(const std::shared_ptr<MemoryUse>& use, std::span<const ByteRange> ranges) {
  if (!driver_->usable()) return order_.clear();
  order_.publish(use, ranges);
}

// All that is in flight has a deadline of its own, so this ends.
void Group::settle(std::span<const ByteRange> ranges) {
  constexpr auto kSlice = std::chrono::microseconds(100);
  for (const auto& use : uses_of(ranges)) {
    while (!use->ended()) {
      check_usable();
      check_interrupts();
      std::this_thread::sleep_for(kSlice);
    }
    if (!use->over()) use->deliver();
  }
}

void Group::connect(int rank, std::vector<Fd> sockets) {
  check_member();
  if (sockets.size() != static_cast<size_t>(config_.lanes) + 1) {
    throw UsageError("connect: a socket for each lane and one for messages");
  }
  auto kept = std::make_shared<std::vector<Fd>>(std::move(sockets));
  driver_->at_next_turn([this, rank, kept] { on_demand_.connect(rank, std::move(*kept)); });
}

void Group::give_up(int rank, const std::string& reason, bool unanswered, bool closed) {
  check_member();
  driver_->at_next_turn([=, this] { on_demand_.give_up(rank, reason, unanswered, closed); });
}

std::vector<int> Group::take_requests() {
  check_member();
  return on_demand_.take_requests();
}

bool Group::pass_on() {
  check_member();
  return driver_->pass_on();
}

std::vector<int> Group::gone_ranks() {
  check_member();
  return driver_->gone_ranks();
}

Traffic Group::traffic() const {
  check_member();
  return member_->traffic();
}

void Group::abort(const std::string& reason) {
  check_member();
  member_->fail(std::make_exception_ptr(AbortedError(reason)));
  driver_->wake();
}

std::exception_ptr Group::error() const {
  check_member();
  return member_->failure().error();
}

void Group::drain() {
  check_member();
  if (topology_.world_size > 1) driver_->drain();
}

void Group::close() {
  if (inherited() || !driver_->close()) return;
  // One round trip, where everything is well. A host that is gone is not waited for longer than it
  // takes to notice that.
  const auto until = after(config_.dead_after);
  while (!error() && !member_->delivered() && Clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  error_at_close_ = member_->leave();
  device_calls_->close();
}

}  // namespace hier
