// Driving: one thread at a time moves everything in flight, and sleeps while nothing moves.
#include <time.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/floating_point.h"
#include "group/group.h"
#include "group/patience.h"

namespace hier {

namespace {

constexpr long kDeviceSleepNs = 50'000;  // a device cannot ring: its flags are looked at
constexpr int kSleepMs = 50;         // longest sleep: signals, deadlines and peers are looked at
constexpr unsigned kLookEvery = 64;  // turns with progress between two looks at the clock
constexpr auto kLookInterval = std::chrono::milliseconds(kSleepMs);
constexpr auto kPause = std::chrono::seconds(1);

// The clock as it was at the kernel's last tick, some milliseconds ago: a third of the cost.
Clock::time_point coarse_now() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return Clock::time_point(std::chrono::seconds(now.tv_sec) +
                           std::chrono::nanoseconds(now.tv_nsec));
}

// What a signal's handler has raised: to be thrown once, to the caller, and kept nowhere, for it is
// an object of another language's.
struct Interrupted {
  std::exception_ptr raised;
  std::string text;
};

}  // namespace

// Drives until `ended`, and leaves what is still in flight to the worker. On an error poisons the
// group, ends everything in flight with it, and throws. A signal is an error to a thread whose own
// call it drives; one that only waits stops driving.
void Group::drive(const std::function<bool()>& ended, Driver driver) {
  const DefaultFloatingPoint floating_point;
  const auto stop = [this](void*) { stop_driving(); };
  const std::unique_ptr<void, decltype(stop)> at_the_end(this, stop);
  Patience patience(config_.ranks_on_host);
  driver_ = driver;
  try {
    // After a pause the links are looked at first: a host may have gone meanwhile.
    if (coarse_now() - looked_ >= kPause) look_around();
    while (!ended()) {
      if (failed_.load(std::memory_order_acquire)) throw_failure();
      if (num_pending_.load(std::memory_order_acquire) > 0) accept_pending();
      end_hopeless_receives();
      if (turn()) {
        patience.reset();
        if (++turns_ % kLookEvery == 0 && Clock::now() - looked_ >= kLookInterval) look_around();
      } else if (patience.exhausted()) {
        sleep();
      }
    }
  } catch (const Interrupted& signal) {
    if (driver == Driver::caller) {
      end_all(std::make_exception_ptr(
          AbortedError("rank " + std::to_string(topology_.rank) + " raised " + signal.text)));
    }
    std::rethrow_exception(signal.raised);
  } catch (const BrokenStream& broken) {
    const auto error = cause_of(broken);
    end_all(error);
    std::rethrow_exception(error);
  } catch (...) {
    const auto error = std::current_exception();
    end_all(error);
    std::rethrow_exception(error);
  }
}

bool Group::turn() {
  bool moved = false;
  for (Lane& lane : lanes_) {
    if (!lane.runs.empty()) moved |= advance(lane);
  }
  for (const auto& run : trailing_) moved |= end_trailing(*run);
  std::erase_if(trailing_, [](const auto& run) { return run->work->done(); });
  return messages_->progress() || moved;
}

bool Group::advance(Lane& lane) {
  Run& run = *lane.runs.front();
  bool moved = false;
  if (!run.execution) {
    if (run.call.use && !run.call.use->may_begin()) return false;
    if (run.aligned) std::memcpy(run.aligned.get(), run.call.data, run.call.bytes());
    // A run without elements synchronises nobody: it must not take a place for its header.
    const bool staged = run.plan.local && run.plan.count > 0;
    const uint64_t run_of_lane = staged ? lane.local_runs++ : 0;
    run.execution.emplace(std::move(run.plan), &run.header, lane.engine.get(), lane.local.get(),
                          run.digest, run_of_lane, run.device.get());
    moved = true;
  }
  moved |= run.execution->progress();
  moved |= lane.engine->progress();
  // A finished run may have bytes on the engine still: a spill, or the padding of a send.
  if (!run.execution->finished() || !lane.engine->idle()) return moved;
  shared_bytes_.fetch_add(run.execution->shared_bytes(), std::memory_order_relaxed);
  count_traffic(lane.channels);
  std::unique_ptr<Run> over = std::move(lane.runs.front());
  lane.runs.pop_front();
  if (over->device && !over->device->ended()) {
    trailing_.push_back(std::move(over));
  } else {
    finish(*over);
  }
  return true;
}

void Group::finish(Run& run) {
  const auto work = run.work;
  if (run.aligned) std::memcpy(run.call.data, run.aligned.get(), run.call.bytes());
  history_[run.header.run % history_.size()] = run.header;
  --in_flight_;
  work->finish(nullptr);
  if (run.call.use) run.call.use->end_run();
}

void Group::count_traffic(Channels& channels) {
  for (const auto& channel : channels) {
    if (!channel || channel->bytes_sent == 0) continue;
    auto& counter = channel->over_network() ? network_bytes_ : shared_bytes_;
    counter.fetch_add(std::exchange(channel->bytes_sent, 0), std::memory_order_relaxed);
  }
}

void Group::enqueue(std::unique_ptr<Run> run) {
  lanes_[run->header.run % lanes_.size()].runs.push_back(std::move(run));
}

void Group::accept_pending() {
  std::deque<std::shared_ptr<Transfer>> transfers;
  {
    const std::lock_guard lock(mutex_);
    for (; !pending_.empty(); pending_.pop_front()) {
      enqueue(std::move(pending_.front()));
    }
    transfers.swap(pending_transfers_);
    num_pending_.store(0, std::memory_order_release);
  }
  // Not under the lock: posting may end a transfer.
  messages_->post(std::move(transfers));
}

// A rank that leaves in order says so behind its last message. A receive that waits for more ends
// alone, and the group goes on: other ranks may still be exchanging messages.
void Group::end_hopeless_receives() {
  const bool draining = draining_.load(std::memory_order_relaxed);
  if (draining && messages_->say_last()) messages_->listen(/*sockets=*/true);
  if (!draining && !messages_->any_last()) return;
  for (const auto& receive : messages_->take_hopeless()) {
    const std::string what = describe(*receive) + ": ";
    const bool any = receive->peer == kAnySource;
    const std::string who = any ? "all other ranks" : "rank " + std::to_string(receive->peer);
    --in_flight_;
    receive->ended(
        draining ? std::make_exception_ptr(
                       AbortedError(what + "the group is being destroyed, and no rank sends it"))
                 : std::make_exception_ptr(PeerError(
                       any ? topology_.rank : receive->peer,
                       what + "no rank sends it: " + who + " left the group (destroyed it)")));
  }
}

// Sleeps until a descriptor or the doorbell says that there may be something to do.
void Group::sleep() {
  // What gone ranks have written is readable by now, and has been read: who waits, waits in vain.
  if (control_.anybody_gone() || messages_->any_ended()) {
    if (turn() || messages_->listen(/*sockets=*/false)) return;
    check_presence();
  }
  bells_.prepare_to_sleep();
  // Once more, after the announcement: see Doorbells.
  if (turn() || messages_->listen(/*sockets=*/false)) {
    bells_.woke_up();
    return;
  }
  poll_fds_.clear();
  poll_fds_.push_back({wake_.get(), POLLIN, 0});
  if (bells_.fd() >= 0) poll_fds_.push_back({bells_.fd(), POLLIN, 0});
  for (const Lane& lane : lanes_) lane.engine->blocked_on(poll_fds_);
  const auto first_message = static_cast<std::ptrdiff_t>(poll_fds_.size());
  messages_->blocked_on(poll_fds_);
  const auto first_control = static_cast<std::ptrdiff_t>(poll_fds_.size());
  control_.poll_fds(poll_fds_);
  const timespec limit{0, waits_for_device() ? kDeviceSleepNs : kSleepMs * 1'000'000};
  const int ready = ::ppoll(poll_fds_.data(), poll_fds_.size(), &limit, nullptr);
  const int error = ready < 0 ? errno : 0;
  bells_.woke_up();
  if (error != 0 && error != EINTR) throw SystemError(error, "poll");
  if (error == EINTR) check_signals();
  if (poll_fds_[0].revents) {
    eventfd_t calls = 0;
    (void)::eventfd_read(wake_.get(), &calls);
  }
  const auto any = [&](std::ptrdiff_t first, std::ptrdiff_t end) {
    return std::any_of(poll_fds_.begin() + first, poll_fds_.begin() + end,
                       [](const pollfd& fd) { return fd.revents != 0; });
  };
  if (any(first_message, first_control)) messages_->listen(/*sockets=*/true);
  const bool control = any(first_control, static_cast<std::ptrdiff_t>(poll_fds_.size()));
  // Most wake-ups are for data: they need no look around, which costs a call per control link.
  if (control || Clock::now() - looked_ >= kLookInterval) look_around();
}

bool Group::waits_for_device() const {
  if (!trailing_.empty()) return true;
  return std::any_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) {
    if (lane.runs.empty()) return false;
    const auto& execution = lane.runs.front()->execution;
    return execution && execution->waits_for_device();
  });
}

void Group::check_signals() const {
  if (driver_ == Driver::worker) return;
  try {
    check_interrupts();
  } catch (const std::exception& e) {
    throw Interrupted{std::current_exception(), e.what()};
  }
  check_member();  // a handler may fork
}

void Group::wake() { (void)::eventfd_write(wake_.get(), 1); }

}  // namespace hier
