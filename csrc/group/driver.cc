// Driving, sleeping, and passing the wheel.
#include "group/driver.h"

#include <sys/eventfd.h>
#include <time.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/floating_point.h"
#include "group/spin_then_yield.h"

namespace hier {

namespace {

constexpr auto kLookInterval = Member::kLookInterval;  // of signals too
constexpr unsigned kLookEvery = 64;  // turns with progress between two looks at the clock
constexpr auto kPause = std::chrono::seconds(1);
constexpr double kLongestFarewell = 1;  // seconds

// The clock as it was at the kernel's last tick, some milliseconds ago: a third of the cost.
Clock::time_point coarse_now() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return Clock::time_point(std::chrono::seconds(now.tv_sec) +
                           std::chrono::nanoseconds(now.tv_nsec));
}

timespec to_timespec(Clock::duration wait) {
  const auto ns =
      std::max<int64_t>(0, std::chrono::duration_cast<std::chrono::nanoseconds>(wait).count());
  return {ns / 1'000'000'000, ns % 1'000'000'000};
}

// What a signal's handler has raised: to be thrown once, to the caller, and kept nowhere, for it is
// an object of another language's.
struct Interrupted {
  std::exception_ptr raised;
  std::string text;
};

}  // namespace

Driver::Driver(Member& member, Doorbells& bells, int rank, int ranks_on_host)
    : member_(member),
      bells_(bells),
      rank_(rank),
      ranks_on_host_(ranks_on_host),
      wake_(check_errno(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")) {}

// Drives until `ended`, and leaves what is still in flight to the worker. An error of the group
// ends every work, and so what is waited for. A signal is an error to a thread whose own call it
// drives; one that only waits stops driving.
void Driver::drive(const std::function<bool()>& ended, Who who) {
  const DefaultFloatingPoint floating_point;
  const auto stop = [this](void*) { stop_driving(); };
  const std::unique_ptr<void, decltype(stop)> at_the_end(this, stop);
  try {
    take_turns(ended, who);
  } catch (const Interrupted& signal) {
    if (who == Who::caller) {
      member_.end(std::make_exception_ptr(
          AbortedError("rank " + std::to_string(rank_) + " raised " + signal.text)));
    }
    std::rethrow_exception(signal.raised);
  } catch (...) {
    // Where a signal's handler has forked, all of this is the parent's.
    if (!origin_.inherited()) member_.end(std::current_exception());
    throw;
  }
}

void Driver::take_turns(const std::function<bool()>& ended, Who who) {
  SpinThenYield waiting(ranks_on_host_);
  // After a pause the links are looked at first: a host may have gone meanwhile.
  if (coarse_now() - member_.looked() >= kPause) {
    look_at_signals(who, Clock::now());
    member_.step(Clock::now(), {.control = true});
  }
  while (!ended()) {
    if (num_pending_.load(std::memory_order_acquire) > 0) accept_pending();
    if (member_.turn()) {
      waiting.reset();
      if (++driving_.turns % kLookEvery != 0) continue;
      const auto now = Clock::now();
      if (now - member_.looked() < kLookInterval) continue;
      look_at_signals(who, now);
      member_.step(now, {.control = true});
    } else if (waiting.exhausted()) {
      sleep(who);
    }
  }
}

void Driver::accept_pending() {
  std::deque<std::unique_ptr<Run>> runs;
  std::deque<std::shared_ptr<Transfer>> transfers;
  std::vector<std::function<void()>> changes;
  bool draining = false;
  {
    const std::lock_guard lock(mutex_);
    draining = std::exchange(draining_, false);
    runs.swap(pending_);
    transfers.swap(pending_transfers_);
    changes.swap(pending_changes_);
    num_pending_.store(0, std::memory_order_release);
  }
  for (const auto& change : changes) change();
  driving_.arrivals.messages |= !changes.empty();
  // Not under the lock: to accept may be to end.
  for (auto& run : runs) member_.accept(std::move(run));
  member_.accept(std::move(transfers));
  if (draining) member_.drain();
}

// Sleeps until a descriptor or the doorbell says that there may be something to do.
void Driver::sleep(Who who) {
  bells_.prepare_to_sleep();
  // Once more, after the announcement: see Doorbells.
  const auto now = Clock::now();
  const Progress step = member_.step(now, std::exchange(driving_.arrivals, {}));
  if (step.moved) return bells_.woke_up();
  driving_.fds.clear();
  driving_.fds.push_back({wake_.get(), POLLIN, 0});
  if (bells_.fd() >= 0) driving_.fds.push_back({bells_.fd(), POLLIN, 0});
  const auto places = member_.blocked_on(driving_.fds);
  const timespec limit = to_timespec(step.wake_by - now);
  const int ready = ::ppoll(driving_.fds.data(), driving_.fds.size(), &limit, nullptr);
  const int error = ready < 0 ? errno : 0;
  bells_.woke_up();
  if (error != 0 && error != EINTR) throw SystemError(error, "poll");
  if (error == EINTR) driving_.looked_at_signals = {};
  look_at_signals(who, Clock::now());
  if (driving_.fds[0].revents) {
    eventfd_t calls = 0;
    (void)::eventfd_read(wake_.get(), &calls);
  }
  const auto any = [&](size_t first, size_t end) {
    return std::any_of(driving_.fds.begin() + static_cast<std::ptrdiff_t>(first),
                       driving_.fds.begin() + static_cast<std::ptrdiff_t>(end),
                       [](const pollfd& fd) { return fd.revents != 0; });
  };
  driving_.arrivals = {any(places.messages, places.control),
                       any(places.control, driving_.fds.size())};
  if (driving_.arrivals.messages || driving_.arrivals.control)
    member_.step(Clock::now(), std::exchange(driving_.arrivals, {}));
}

void Driver::look_at_signals(Who who, Clock::time_point now) {
  if (who == Who::worker || now - driving_.looked_at_signals < kLookInterval) return;
  driving_.looked_at_signals = now;
  try {
    check_interrupts();
  } catch (const std::exception& e) {
    throw Interrupted{std::current_exception(), e.what()};
  }
  origin_.check();  // a handler may fork
}

bool Driver::while_nobody_drives(const std::function<void()>& look) {
  {
    const std::lock_guard lock(mutex_);
    if (driven_ || closing_) return false;
    driven_ = true;
  }
  const auto stop = [this](void*) { stop_driving(); };
  const std::unique_ptr<void, decltype(stop)> at_the_end(this, stop);
  look();
  return true;
}

bool Driver::pass_on() {
  return while_nobody_drives([this] { member_.pass_on(); });
}

std::vector<int> Driver::gone_ranks() {
  std::vector<int> gone;
  while_nobody_drives([&] { gone = member_.gone_ranks(); });
  return gone;
}

bool Driver::at_next_turn(std::function<void()> change) {
  {
    const std::lock_guard lock(mutex_);
    if (closing_) return false;
    pending_changes_.push_back(std::move(change));
    num_pending_.fetch_add(1, std::memory_order_release);
  }
  wake();
  return true;
}

void Driver::wake() { (void)::eventfd_write(wake_.get(), 1); }

void Driver::check_usable() const {
  member_.failure().check();
  if (closing_) throw AbortedError("the group is closed: make a new one");
}

// mutex_ is held. What nobody waits in needs the worker, and so does what another thread drives: it
// may end its own call first. Where the system has no thread for it, the call is refused here, with
// nothing queued that nobody would drive.
void Driver::check_admission(Waited waited) {
  check_usable();
  if (!worker_.joinable() && (waited == Waited::no || driven_)) start_worker();
}

void Driver::check_admission() {
  const std::lock_guard lock(mutex_);
  check_admission(Waited::no);
}

void Driver::start_worker() {
  try {
    worker_ = std::thread([this] { worker_main(); });
  } catch (const std::system_error& error) {
    throw SystemError(error.code().value(),
                      "rank " + std::to_string(rank_) +
                          " cannot start the thread that asynchronous calls need (raise ulimit -u, "
                          "or the container's limit of pids)");
  }
}

// mutex_ is held. True if the caller is to drive, for nobody does.
bool Driver::admit() {
  ++member_.in_flight();
  return !std::exchange(driven_, true);
}

bool Driver::submit(std::unique_ptr<Run> run, Waited waited) {
  const std::lock_guard lock(mutex_);
  check_admission(waited);
  // If nobody drives, nothing is pending, and the lanes are this thread's. Room first: where there
  // is no memory, the call has neither a number nor a driver.
  auto& place = driven_ ? pending_.emplace_back() : member_.make_room(numbers_.next());
  numbers_.number(*run);
  place = std::move(run);
  const bool driving = admit();
  if (!driving) num_pending_.fetch_add(1, std::memory_order_release);
  return driving;
}

bool Driver::submit(std::shared_ptr<Transfer> transfer, Waited waited) {
  const std::lock_guard lock(mutex_);
  check_admission(waited);
  pending_transfers_.push_back(std::move(transfer));
  num_pending_.fetch_add(1, std::memory_order_release);
  return admit();
}

void Driver::finish(Work& work, bool driving) {
  if (driving) {
    drive([&] { return work.done(); }, Who::caller);
    if (const auto error = work.error()) std::rethrow_exception(error);
    return;
  }
  wake();
  try {
    work.wait();
  } catch (const Error&) {
    throw;
  } catch (...) {  // a signal's exception: the other ranks must not wait for us
    if (origin_.inherited()) throw;
    const std::string text = "rank " + std::to_string(rank_) + " was interrupted";
    member_.fail(std::make_exception_ptr(AbortedError(text)));
    wake();
    while (!work.done()) std::this_thread::yield();  // who drives may be in the caller's buffer
    throw;
  }
}

void Driver::leave(bool driving, bool try_first) {
  if (!driving) return wake();
  if (!try_first) return stop_driving();
  try {
    drive([turns = 0]() mutable { return turns++ > 0; }, Who::caller);
  } catch (const Error&) {
    // Every work has it.
  }
}

bool Driver::wait(Work& work, double seconds) {
  const auto take_back = [this] {
    const std::lock_guard lock(mutex_);
    return hand_over_.take_back(Clock::now());
  };
  if (work.device() || work.done() || !take_back()) return work.wait(seconds);
  const auto until = after(seconds < 0 ? 1e9 : seconds);
  drive([&] { return work.done() || Clock::now() >= until; }, Who::waiter);
  return work.wait(0);
}

// Leaves what is in flight to the worker, which exists if anything is: see check_admission().
void Driver::stop_driving() {
  if (origin_.inherited()) return;
  const std::lock_guard lock(mutex_);
  driven_ = member_.in_flight() > 0;
  if (driven_) {
    hand_over_.give(Clock::now());
  } else {
    driven_cv_.notify_all();
  }
  if (closing_) hand_over_.rouse();
}

void Driver::worker_main() noexcept {
  const auto closing = [this] { return closing_.load(); };
  const auto nothing_more = [this] { return closing_ && member_.in_flight() == 0; };
  const auto idle = [this] {
    return num_pending_.load(std::memory_order_acquire) == 0 && member_.idle();
  };
  const auto to_drive = [&] {
    std::unique_lock lock(mutex_);
    return hand_over_.await(lock, closing, nothing_more);
  };
  while (to_drive()) {
    try {
      drive(idle, Who::worker);
    } catch (...) {
      // drive() has handed the error to every work in flight and poisoned the group.
    }
  }
}

// Everything has a deadline of its own, so this ends.
void Driver::drain() {
  std::unique_lock lock(mutex_);
  if (closing_) return;  // then close() waits for who drives, and nobody begins
  draining_ = true;
  num_pending_.fetch_add(1, std::memory_order_release);
  wake();
  constexpr auto kSlice = std::chrono::milliseconds(50);
  while (!driven_cv_.wait_for(lock, kSlice, [this] { return !driven_ || closing_; })) {
    lock.unlock();
    check_interrupts();
    origin_.check();  // a handler may fork
    lock.lock();
  }
  if (!usable()) return;
  driven_ = true;
  lock.unlock();
  // Nothing is in flight. A peer that takes nothing for so long learns it later, from the end.
  const auto until = after(kLongestFarewell);
  try {
    drive(
        [&, turns = 0]() mutable {
          return turns++ > 0 && (member_.drained() || Clock::now() >= until);
        },
        Who::waiter);
  } catch (const Error&) {
    // Whom it concerns learns it from the end of the connection.
  }
}

bool Driver::close() {
  {
    const std::lock_guard lock(mutex_);
    if (closing_) return false;
    if (const size_t count = member_.in_flight(); count > 0) {
      const std::string text =
          "the group was closed with " + std::to_string(count) + " collectives in flight";
      member_.failure().set(std::make_exception_ptr(AbortedError(text)), text, [] {});
    }
    closing_ = true;
    hand_over_.rouse();
  }
  wake();
  {
    std::unique_lock lock(mutex_);
    driven_cv_.wait(lock, [this] { return !driven_; });
    driven_ = true;  // nobody else will any more, and nobody starts a worker
  }
  if (worker_.joinable()) worker_.join();
  // Connections that came while nobody drove: to be closed with the others.
  for (const auto& change : std::exchange(pending_changes_, {})) change();
  return true;
}

}  // namespace hier
