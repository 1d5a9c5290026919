// Submitting collectives and messages, and who drives them: a caller that blocks, or the worker.
#include <algorithm>
#include <cstring>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "group/check.h"
#include "group/group.h"

namespace hier {

namespace {

constexpr auto kLongestDoze = std::chrono::microseconds(1600);

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

// Kernels take aligned memory alone: a call that reduces other memory works on a copy. What only
// moves is moved as bytes.
std::unique_ptr<Group::Run> Group::prepare(Call call) {
  check_usable();
  check_memory(call, topology_.rank);
  auto run = std::make_unique<Run>();
  void* const place = call.data;
  if (info(call.collective).reduces && !is_aligned(place, size_of(call.dtype))) {
    constexpr size_t kUnit = sizeof(std::max_align_t);
    const size_t units = (call.bytes() + kUnit - 1) / kUnit;
    run->aligned = std::make_unique_for_overwrite<std::max_align_t[]>(units);
    call.data = run->aligned.get();
  }
  run->plan = planner_->plan(call, run->header);
  run->begun = Clock::now();
  run->deadline = after(call.timeout < 0 ? timeout() : call.timeout, run->begun);
  call.data = place;
  run->call = std::move(call);
  return run;
}

std::shared_ptr<Transfer> Group::prepare(const Message& m, const std::shared_ptr<Work>& work) {
  check_usable();
  const std::string what = m.send ? "send: " : "recv: ";
  const bool any = !m.send && m.peer == kAnySource;
  if (!any && (m.peer < 0 || m.peer >= topology_.world_size)) {
    throw UsageError(what + "rank " + std::to_string(m.peer) + " is outside this group of " +
                     std::to_string(topology_.world_size) + " ranks");
  }
  if (m.peer == topology_.rank || topology_.world_size == 1) {
    throw UsageError(what + "rank " + std::to_string(topology_.rank) +
                     " cannot exchange messages with itself; copy the array");
  }
  if (m.tag < 0 && (m.send || m.tag != kAnyTag)) {
    throw UsageError(what + "tag " + std::to_string(m.tag) + " is negative");
  }
  check_address(m.send ? "send" : "recv", m.data, m.count, m.dtype, topology_.rank);
  auto transfer = std::make_shared<Transfer>();
  transfer->send = m.send;
  transfer->peer = m.peer;
  transfer->tag = m.tag;
  transfer->data = static_cast<std::byte*>(m.data);
  transfer->bytes = m.count * size_of(m.dtype);
  transfer->dtype = m.dtype;
  transfer->begun = Clock::now();
  transfer->deadline = after(m.timeout < 0 ? timeout() : m.timeout, transfer->begun);
  transfer->ended = [this, work, self = transfer.get()](std::exception_ptr error) {
    if (!error) {
      work->set_matched(self->peer, self->tag);
      count_traffic(message_channels_);
      --in_flight_;
    }
    work->finish(std::move(error));
  };
  return transfer;
}

// mutex_ is held. What nobody waits in needs the worker, and so does what another thread drives: it
// may end its own call first. Where the system has no thread for it, the call is refused here, with
// nothing queued that nobody would drive.
void Group::check_admission(Waited waited) {
  if (error_) throw_failure();
  if (closing_) throw AbortedError("the group is closed: make a new one");
  if (worker_.joinable() || (waited == Waited::yes && !driven_)) return;
  try {
    worker_ = std::thread([this] { worker_main(); });
  } catch (const std::system_error& error) {
    throw SystemError(error.code().value(),
                      "rank " + std::to_string(topology_.rank) +
                          " cannot start the thread that asynchronous calls need (raise ulimit -u, "
                          "or the container's limit of pids)");
  }
}

// mutex_ is held. True if the caller is to drive, for nobody does.
bool Group::admit() {
  ++in_flight_;
  return !std::exchange(driven_, true);
}

// mutex_ is held: numbers follow the order of the calls.
void Group::number(Run& run) {
  run.header.run = next_run_++;
  run.header.history = static_cast<uint32_t>(history_hash_);
  run.digest = history_hash_ = run.header.hash(history_hash_);
}

bool Group::submit(std::unique_ptr<Run> run, Waited waited) {
  const std::lock_guard lock(mutex_);
  check_admission(waited);
  // If nobody drives, nothing is pending, and the lanes are this thread's. Room first: where there
  // is no memory, the call has neither a number nor a driver.
  auto& queue = driven_ ? pending_ : lanes_[next_run_ % lanes_.size()].runs;
  queue.emplace_back();
  number(*run);
  queue.back() = std::move(run);
  const bool driving = admit();
  if (!driving) num_pending_.fetch_add(1, std::memory_order_release);
  return driving;
}

bool Group::submit(std::shared_ptr<Transfer> transfer, Waited waited) {
  const std::lock_guard lock(mutex_);
  check_admission(waited);
  pending_transfers_.push_back(std::move(transfer));
  num_pending_.fetch_add(1, std::memory_order_release);
  return admit();
}

// Blocks until the work has ended, and throws its error.
void Group::finish(Work& work, bool driving) {
  if (driving) {
    drive([&] { return work.done(); }, Driver::caller);
    if (const auto error = work.error()) std::rethrow_exception(error);
    return;
  }
  wake();
  try {
    work.wait();
  } catch (const Error&) {
    throw;
  } catch (...) {  // a signal's exception: the other ranks must not wait for us
    if (inherited()) throw;
    abort("rank " + std::to_string(topology_.rank) + " was interrupted");
    while (!work.done()) std::this_thread::yield();  // who drives may be in the caller's buffer
    throw;
  }
}

void Group::run(Call call) {
  if (call.device) {
    wait(*start(std::move(call)));
    return;
  }
  if (!call.use && num_in_use_.load(std::memory_order_acquire) > 0) call.use = claim(call);
  auto run = prepare(std::move(call));
  if (topology_.world_size == 1) return copy_alone(run->call, run->plan);
  const auto work = run->work;
  finish(*work, submit(std::move(run), Waited::yes));
}

std::shared_ptr<Work> Group::start(Call call) {
  if (call.use || topology_.world_size == 1) return begin(std::move(call));
  const auto use = call.use = claim(call);
  auto work = begin(call);
  publish(use, call);
  return work;
}

std::shared_ptr<Work> Group::begin(Call call) {
  if (call.device && topology_.world_size > 1) {
    check_member();
    const std::lock_guard lock(mutex_);
    check_admission(Waited::no);  // before anything is on the device's streams
  }
  auto run = call.device ? prepare_on_device(std::move(call)) : prepare(std::move(call));
  const auto work = run->work;
  if (topology_.world_size == 1) {
    copy_alone(run->call, run->plan);
    work->finish(nullptr);
    return work;
  }
  try {
    if (submit(std::move(run), Waited::no)) {
      stop_driving();
    } else {
      wake();
    }
  } catch (...) {  // refused meanwhile, with copies of the caller's memory under way
    if (work->device()) join_after_failure(*work->device());
    throw;
  }
  return work;
}

std::shared_ptr<Work> Group::run(const Message& message) {
  auto work = make_work();
  finish(*work, submit(prepare(message, work), Waited::yes));
  return work;
}

// What can be moved at once is, in the caller's thread: a small message needs no hand-off.
std::shared_ptr<Work> Group::start(const Message& message) {
  auto work = make_work();
  if (!submit(prepare(message, work), Waited::no)) {
    wake();
    return work;
  }
  try {
    drive([turns = 0]() mutable { return turns++ > 0; }, Driver::caller);
  } catch (const Error&) {
    // The work has it.
  }
  return work;
}

// True if the worker has been told to drive and has not begun: then this thread does in its place.
bool Group::take_over() {
  const std::lock_guard lock(mutex_);
  if (!std::exchange(handed_over_, false)) return false;
  const bool at_once = Clock::now() < handed_over_at_ + kGrace;
  doze_ = at_once ? std::min(2 * doze_, kLongestDoze) : kGrace;
  return true;
}

bool Group::wait(Work& work, double seconds) {
  check_member();
  if (work.device() || work.done() || !take_over()) return work.wait(seconds);
  const auto until = after(seconds < 0 ? 1e9 : seconds);
  try {
    drive([&] { return work.done() || Clock::now() >= until; }, Driver::waiter);
  } catch (const Error&) {
    // The work has it.
  }
  return work.wait(0);
}

// Everything has a deadline of its own, so this ends.
void Group::drain() {
  check_member();
  draining_.store(true, std::memory_order_relaxed);
  wake();
  constexpr auto kSlice = std::chrono::milliseconds(50);
  std::unique_lock lock(mutex_);
  while (!driving_cv_.wait_for(lock, kSlice, [this] { return !driven_; })) {
    lock.unlock();
    check_interrupts();
    check_member();  // a handler may fork
    lock.lock();
  }
  if (error_ || closing_ || topology_.world_size == 1) return;
  driven_ = true;
  lock.unlock();
  try {  // nothing is in flight, and the others are told that nothing more comes
    drive([turns = 0]() mutable { return turns++ > 0; }, Driver::waiter);
  } catch (const Error&) {
    // Whom it concerns learns it from the end of the connection.
  }
}

// Leaves what is in flight to the worker, which exists if anything is: see check_admission().
void Group::stop_driving() {
  if (inherited()) return;
  const std::lock_guard lock(mutex_);
  driven_ = handed_over_ = in_flight_ > 0;
  if (handed_over_) {
    handed_over_at_ = Clock::now();
    ++hand_overs_;
  } else {
    driving_cv_.notify_all();
  }
  if ((handed_over_ && !dozing_) || closing_) worker_cv_.notify_one();
}

// Waits until the worker is to drive; false: the group closes, and nothing is in flight. Who
// started something often waits for it at once, and then drives it himself: see wait(). Such calls
// come in bursts, and while one lasts the worker dozes: it looks by the clock, and nobody pays for
// waking it at every call. The longer the burst, the longer the doze, for each look takes a core
// from ranks that share it; what nobody waits for after a burst may begin that much later, once.
bool Group::await_hand_over() {
  std::unique_lock lock(mutex_);
  for (uint64_t seen = hand_overs_;;) {
    const auto now = Clock::now();
    if (handed_over_ && (closing_ || now >= handed_over_at_ + kGrace)) {
      handed_over_ = false;
      doze_ = kGrace;
      return true;
    }
    if (closing_ && in_flight_ == 0) return false;
    if (handed_over_ || hand_overs_ != seen) {
      seen = hand_overs_;
      dozing_ = true;
      worker_cv_.wait_until(lock, handed_over_ ? handed_over_at_ + kGrace : now + doze_);
      dozing_ = false;
    } else {
      worker_cv_.wait(lock);
    }
  }
}

void Group::worker_main() noexcept {
  const auto idle = [this] {
    return num_pending_.load(std::memory_order_acquire) == 0 && messages_->idle() &&
           trailing_.empty() && std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) {
             return lane.runs.empty();
           });
  };
  while (await_hand_over()) {
    try {
      drive(idle, Driver::worker);
    } catch (...) {
      // drive() has handed the error to every work in flight and poisoned the group.
    }
  }
}

}  // namespace hier
