// Life of a group: opening lanes, submitting runs, the worker thread, closing.
#include "group/group.h"

#include <sys/eventfd.h>

#include "base/error.h"
#include "transport/shm.h"
#include "transport/tcp.h"

namespace hier {

Group::Group(GroupConfig config, Wiring wiring)
    : config_(std::move(config)),
      topology_(config_.rank, config_.node_of_rank),
      fork_depth_(fork_depth()),
      control_(std::move(wiring.control)),
      wake_(check_errno(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")),
      lanes_(static_cast<size_t>(config_.lanes)),
      timeout_(config_.timeout) {
  for (RunHeader& header : history_) header.run = ~0u;  // no run
  if (topology_.local_size > 1) {
    const auto layout = ArenaLayout::plan(topology_.local_size, config_.lanes);
    arena_ = std::make_shared<Arena>(wiring.arena.get(), layout);
    bells_ = Doorbells(arena_->sleep_words(), std::move(wiring.doorbells), topology_.local_rank);
  }
  for (int i = 0; i < config_.lanes; ++i) open_lane(lanes_[i], i, wiring);
}

void Group::open_lane(Lane& lane, int index, Wiring& wiring) {
  lane.channels.resize(topology_.node_of_rank.size());
  const auto& neighbours = topology_.neighbours();
  for (int local = 0; local < topology_.local_size; ++local) {
    if (local == topology_.local_rank) continue;
    const ArenaLayout& layout = arena_->layout();
    const auto view = [&](int from, int to) {
      auto* ring = reinterpret_cast<ShmRing*>(arena_->raw(layout.ring_at(index, from, to)));
      return ShmRingView{ring, arena_->raw(layout.ring_data_at(index, from, to)),
                         layout.ring_bytes};
    };
    lane.channels[neighbours[local]] = std::make_unique<ShmChannel>(
        view(topology_.local_rank, local), view(local, topology_.local_rank), &bells_, local);
  }
  for (size_t rank = 0; rank < lane.channels.size(); ++rank) {
    Fd& socket = wiring.data[index][rank];
    if (socket) lane.channels[rank] = std::make_unique<TcpChannel>(std::move(socket));
  }
  std::vector<Channel*> channels;
  for (const auto& channel : lane.channels) channels.push_back(channel.get());
  lane.engine = std::make_unique<Engine>(std::move(channels));
  if (arena_) {
    lane.local = std::make_unique<LocalStage>(arena_, index, topology_.local_rank, &bells_);
  }
}

Group::~Group() {
  close();
  if (fork_depth_ != fork_depth() && worker_.joinable()) {
    worker_.detach();  // a forked child has no such thread
  }
}

void Group::set_timeout(double seconds) {
  if (!(seconds > 0)) throw UsageError("timeout: must be a positive number of seconds");
  timeout_.store(seconds, std::memory_order_relaxed);
}

void Group::set_choices(std::vector<Choice> choices) {
  const std::lock_guard lock(mutex_);
  choices_ = std::move(choices);
}

void Group::check_usable() const {
  if (fork_depth_ != fork_depth()) {
    throw UsageError(
        "this process was forked from a member of the group and is no member itself: "
        "make a new group in it");
  }
  if (failed_.load(std::memory_order_acquire)) throw_failure();
  const std::lock_guard lock(mutex_);
  if (closed_ || closing_) throw AbortedError("the group is closed: make a new one");
}

std::unique_ptr<Group::Run> Group::prepare(Call call) {
  check_usable();
  auto run = std::make_unique<Run>();
  run->plan = make_plan(call, run->header);
  run->begun = Clock::now();
  run->deadline = after(call.timeout < 0 ? timeout() : call.timeout);
  run->call = std::move(call);
  return run;
}

void Group::number(Run& run) {  // mutex_ is held: numbers follow the order of the calls
  if (closing_) throw AbortedError("the group is closed: make a new one");
  run.header.run = next_run_++;
  run.header.history = static_cast<uint32_t>(history_hash_);
  history_hash_ = run.header.hash(history_hash_);
  ++in_flight_;
}

void Group::enqueue(std::unique_ptr<Run> run) {  // mutex_ is held
  pending_.push_back(std::move(run));
  num_pending_.store(pending_.size(), std::memory_order_release);
  if (!worker_.joinable()) worker_ = std::thread([this] { worker_main(); });
  pending_cv_.notify_one();
  wake();
}

void Group::run(Call call) {
  auto prepared = prepare(std::move(call));
  if (topology_.world_size == 1) return;
  std::unique_lock lock(mutex_);
  number(*prepared);
  std::unique_lock driving(drive_mutex_, std::defer_lock);
  // In flight before this one: nothing, so this thread may drive it itself, without a hand-off.
  if (in_flight_ == 1 && driving.try_lock()) {
    lock.unlock();
    const auto work = prepared->work;
    Lane& lane = lanes_[prepared->header.run % lanes_.size()];
    lane.runs.push_back(std::move(prepared));
    drive([&] { return lane.runs.empty(); }, /*in_caller=*/true);
    if (const auto error = work->error()) std::rethrow_exception(error);
    return;
  }
  const auto work = prepared->work;
  enqueue(std::move(prepared));
  lock.unlock();
  try {
    work->wait();
  } catch (const Error&) {
    throw;
  } catch (...) {  // a signal's exception: the other ranks must not wait for us
    abort("rank " + std::to_string(topology_.rank) + " was interrupted");
    throw;
  }
}

std::shared_ptr<Work> Group::start(Call call) {
  auto prepared = prepare(std::move(call));
  auto work = prepared->work;
  if (topology_.world_size == 1) {
    work->finish(nullptr);
    return work;
  }
  const std::lock_guard lock(mutex_);
  number(*prepared);
  enqueue(std::move(prepared));
  return work;
}

void Group::worker_main() noexcept {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      pending_cv_.wait(lock, [&] { return !pending_.empty() || closing_; });
      if (closing_ && pending_.empty()) return;
    }
    const std::lock_guard driving(drive_mutex_);
    try {
      drive(
          [this] {
            if (num_pending_.load(std::memory_order_acquire) > 0) {
              accept_pending();
              return false;
            }
            for (const Lane& lane : lanes_) {
              if (!lane.runs.empty()) return false;
            }
            return true;
          },
          /*in_caller=*/false);
    } catch (...) {
      // drive() has handed the error to every work in flight and poisoned the group.
    }
  }
}

std::shared_ptr<SharedMapping> Group::add_symmetric(int fd, size_t bytes) {
  auto mapping = SharedMapping::open(fd, bytes * static_cast<size_t>(topology_.local_size));
  const std::lock_guard lock(mutex_);
  symmetric_.push_back({mapping, bytes});
  return mapping;
}

std::byte* Group::symmetric_part(const SharedMapping& mapping, size_t bytes) const {
  return mapping.data() + bytes * static_cast<size_t>(topology_.local_rank);
}

Traffic Group::traffic() const {
  return {shared_bytes_.load(std::memory_order_relaxed),
          network_bytes_.load(std::memory_order_relaxed)};
}

void Group::abort(const std::string& reason) {
  fail(std::make_exception_ptr(AbortedError(reason)));
  wake();
}

void Group::close() {
  if (fork_depth_ != fork_depth()) return;
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    if (in_flight_ > 0 && !error_) {
      const std::string count = std::to_string(in_flight_);
      error_text_ = "the group was closed with " + count + " collectives in flight";
      error_ = std::make_exception_ptr(AbortedError(error_text_));
      failed_.store(true, std::memory_order_release);
    }
    closing_ = true;
    pending_cv_.notify_all();
  }
  wake();
  if (worker_.joinable()) worker_.join();
  const std::lock_guard driving(drive_mutex_);
  ControlFrame goodbye;
  goodbye.type = ControlFrame::Type::goodbye;
  control_.receive([](int, const ControlFrame&) {});  // unread frames would reset the connection
  control_.broadcast(goodbye);
  control_.close();
  lanes_.clear();
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

}  // namespace hier
