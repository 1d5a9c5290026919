// Watching: what goes wrong while a thread drives, and how that ends the group on every rank.
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "group/group.h"

namespace hier {

namespace {

constexpr auto kCauseWait =
    std::chrono::milliseconds(200);  // for the reason behind a broken stream

std::string seconds_text(double seconds) {
  std::string text = std::to_string(std::round(seconds * 1000) / 1000);
  text.erase(std::max(text.find_last_not_of('0') + 1, text.find('.') + 2));
  return text;
}

template <class RunOrTransfer>
std::string timed_out(const std::string& what, const RunOrTransfer& late, int rank) {
  return what + " timed out after " + seconds_text(Seconds(late.deadline - late.begun).count()) +
         " s on rank " + std::to_string(rank);
}

std::exception_ptr error_from(int sender, const ControlFrame& frame) {
  std::string text = frame.message();
  if (text.find("[reported by rank ") == std::string::npos) {  // the first reporter is of interest
    text += " [reported by rank " + std::to_string(sender) + "]";
  }
  switch (frame.kind) {
    case ErrorKind::peer:
      return std::make_exception_ptr(PeerError(frame.culprit, text));
    case ErrorKind::timeout:
      return std::make_exception_ptr(Timeout(text));
    case ErrorKind::mismatch:
      return std::make_exception_ptr(MismatchError(text));
    case ErrorKind::integrity:
      return std::make_exception_ptr(IntegrityError(text));
    default:
      return std::make_exception_ptr(AbortedError(text));
  }
}

ControlFrame frame_from(const std::exception_ptr& error, int rank) {
  ControlFrame frame;
  frame.type = ControlFrame::Type::abort;
  frame.kind = ErrorKind::aborted;
  try {
    std::rethrow_exception(error);
  } catch (const PeerError& e) {
    frame.kind = e.kind(), frame.culprit = e.rank, frame.set_text(e.what());
  } catch (const Error& e) {
    frame.kind = e.kind(), frame.set_text(e.what());
  } catch (const std::exception& e) {
    frame.set_text("rank " + std::to_string(rank) + " raised " + e.what());
  }
  return frame;
}
}  // namespace

// What needs no attention at every turn: signals, control links, deadlines, peers that are gone.
void Group::look_around() {
  looked_ = Clock::now();
  check_signals();
  control_.receive([this](int rank, const ControlFrame& frame) { handle(rank, frame); });
  check_deadlines();
  for (Lane& lane : lanes_) {
    if (!lane.runs.empty()) tell_status(*lane.runs.front());
  }
  for (const auto& run : trailing_) tell_status(*run);
  // All that a gone peer has written is readable by now: what still waits, waits in vain.
  if (control_.anybody_gone() && !turn()) {
    for (const Lane& lane : lanes_) {
      if (!lane.runs.empty() && lane.runs.front()->execution) check_presence(lane);
    }
    for (const auto& run : trailing_) check_presence(*run);
    check_messages();
  }
}

void Group::handle(int rank, const ControlFrame& frame) {
  if (frame.type == ControlFrame::Type::abort) std::rethrow_exception(error_from(rank, frame));
  if (frame.type != ControlFrame::Type::status) return;
  RunHeader theirs;
  std::memcpy(&theirs, frame.header.data(), sizeof theirs);
  statuses_[rank] = theirs;
  const auto compare = [&](const RunHeader& mine) {
    if (mine.run != theirs.run) return;
    if (auto wrong = disagreement(mine, theirs, rank)) throw MismatchError(*wrong);
  };
  for (const Lane& lane : lanes_) {
    for (const auto& run : lane.runs) compare(run->header);
  }
  for (const auto& run : trailing_) compare(run->header);
  for (const RunHeader& ended : history_) compare(ended);
}

void Group::tell_status(Run& run) {
  if (run.told_status) return;
  const double patience =
      std::min(config_.status_after, Seconds(run.deadline - run.begun).count() / 4);
  if (Seconds(Clock::now() - run.begun).count() < patience) return;
  run.told_status = true;
  ControlFrame status;
  status.type = ControlFrame::Type::status;
  std::memcpy(status.header.data(), &run.header, sizeof run.header);
  control_.broadcast(status);
  for (const auto& [rank, theirs] : statuses_) {
    if (theirs.run != run.header.run) continue;
    if (auto wrong = disagreement(run.header, theirs, rank)) throw MismatchError(*wrong);
  }
}

void Group::check_deadlines() const {
  const auto now = Clock::now();
  for (const Lane& lane : lanes_) {
    for (const auto& run : lane.runs) {
      if (now >= run->deadline) time_out(*run);
    }
  }
  for (const auto& run : trailing_) {
    if (now >= run->deadline) time_out(*run);
  }
  for (const auto& transfer : messages_->unfinished()) {
    if (now >= transfer->deadline) time_out(*transfer);
  }
}

void Group::time_out(const Run& run) const {
  std::string absent;
  for (int rank = 0; rank < topology_.world_size; ++rank) {
    const auto status = statuses_.find(rank);
    const bool entered = status != statuses_.end() && status->second.run >= run.header.run;
    if (rank == topology_.rank || entered) continue;
    absent += (absent.empty() ? "" : ", ") + std::to_string(rank);
  }
  std::string text = timed_out(describe(run.header), run, topology_.rank);
  if (!absent.empty()) {
    text += ": no sign that rank " + absent + " entered it";
  }
  if (run.execution && run.execution->finished()) {
    text += "; waiting for the device's streams";
  } else if (run.execution) {
    text += "; waiting for " + run.execution->describe_wait();
    if (const auto local = run.execution->waits_for_local()) {
      text += " of rank " + std::to_string(topology_.neighbours()[*local]);
    }
  }
  throw Timeout(text +
                ". Look for a rank that is stuck, skips a collective, or needs a timeout longer "
                "than this");
}

void Group::time_out(const Transfer& transfer) const {
  std::string text = timed_out(describe(transfer), transfer, topology_.rank);
  const std::string others = messages_->others_from(transfer);
  if (transfer.send) {
    text += ": nobody has received it";
  } else {
    text += ": no such message has come" + (others.empty() ? "" : ", but " + others);
  }
  throw Timeout(text + ". Look for a missing call, another tag, or a rank that needs longer");
}

// A neighbour that left or died is an error only if a run still needs it: it may have ended its
// part. (A peer on another node shows by the end of its data stream, behind all that it sent.)
void Group::check_presence(const Lane& lane) const {
  const Run& run = *lane.runs.front();
  const auto local = run.execution->waits_for_local();
  for (int i = 0; i < topology_.local_size; ++i) {
    const int rank = topology_.neighbours()[i];
    if (i == topology_.local_rank) continue;
    const bool present = control_.presence(rank) == ControlLinks::Presence::present;
    const bool needed = lane.engine->stuck_on(rank) || local == i;
    if (!present && needed) miss(rank, describe(run.header));
  }
}

void Group::check_presence(const Run& run) const {
  if (!run.ticket) return;
  for (int i = 0; i < topology_.local_size; ++i) {
    const int rank = topology_.neighbours()[i];
    const auto presence = control_.presence(rank);
    if (i == topology_.local_rank || presence == ControlLinks::Presence::present) continue;
    const bool died = presence != ControlLinks::Presence::left;
    if (device_stage_->waits_for(i, *run.ticket, died)) miss(rank, describe(run.header));
  }
}

// Likewise for messages: what has arrived before its sender left can still be received.
void Group::check_messages() const {
  const Transfer* needed = nullptr;
  int gone = -1, present = 0;
  for (int rank = 0; rank < topology_.world_size && !needed; ++rank) {
    if (rank == topology_.rank) continue;
    if (control_.presence(rank) == ControlLinks::Presence::present) {
      ++present;
    } else {
      needed = messages_->waits_for(gone = rank);
    }
  }
  if (!needed && present == 0) {  // a receive from any rank has nobody left
    for (const auto& transfer : messages_->unfinished()) needed = transfer.get();
  }
  if (needed) miss(gone, describe(*needed));
}

void Group::miss(int rank, const std::string& what) const {
  const bool left = control_.presence(rank) == ControlLinks::Presence::left;
  throw PeerError(rank, "rank " + std::to_string(rank) +
                            (left ? " left the group (it closed or destroyed it)" : " has died") +
                            " while rank " + std::to_string(topology_.rank) + " needs it for " +
                            what);
}

// A broken stream is often the echo of an error elsewhere: its reason comes over the control links.
void Group::listen_for_cause() {
  const auto until = Clock::now() + kCauseWait;
  while (Clock::now() < until) {
    control_.receive([this](int rank, const ControlFrame& frame) { handle(rank, frame); });
    ::sched_yield();
  }
}

void Group::fail(std::exception_ptr error) {
  if (fork_depth_ != fork_depth()) return;  // a forked child must not write to its own descriptors
  const ControlFrame frame = frame_from(error, topology_.rank);
  {
    const std::lock_guard lock(mutex_);
    if (error_) return;
    error_ = error;
    error_text_ = frame.message();
    failed_.store(true, std::memory_order_release);
  }
  control_.broadcast(frame);
}

void Group::end_all(std::exception_ptr error) {
  fail(error);  // from here on nothing more is admitted
  std::vector<std::shared_ptr<Work>> works;
  for (Lane& lane : lanes_) {
    for (const auto& run : lane.runs) works.push_back(run->work);
    lane.runs.clear();
  }
  for (const auto& run : trailing_) works.push_back(run->work);
  trailing_.clear();
  if (device_stage_) device_stage_->abandon();
  auto transfers = messages_->take_unfinished();
  {
    const std::lock_guard lock(mutex_);
    for (const auto& run : pending_) works.push_back(run->work);
    transfers.insert(transfers.end(), pending_transfers_.begin(), pending_transfers_.end());
    for (const auto& [memory, offset] : raised_on_failure_) {
      if (const auto kept = memory.lock()) kept->raise_word(offset);
    }
    pending_.clear();
    pending_transfers_.clear();
    num_pending_.store(0, std::memory_order_release);
    in_flight_ = 0;
  }
  for (const auto& work : works) work->finish(error);
  for (const auto& transfer : transfers) transfer->ended(error);
}

void Group::throw_failure() const {
  throw AbortedError("this group has failed and cannot be used any more (make a new one): " +
                     error_text_);
}
}  // namespace hier
