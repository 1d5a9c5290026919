// Watching: what goes wrong while a thread drives, and how that ends the group on every rank.
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "group/group.h"
#include "transport/silence.h"

namespace hier {

namespace {

// Longest wait for the reason behind a broken stream, if the control link of that peer goes on.
constexpr auto kCauseWait = std::chrono::milliseconds(200);
constexpr int kCausePollMs = 10;
constexpr auto kSilenceInterval = std::chrono::milliseconds(250);  // between two looks at TCP_INFO

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

// What needs no attention at every turn: signals, control links, silent hosts, deadlines.
void Group::look_around() {
  looked_ = Clock::now();
  check_signals();
  control_.receive([this](int rank, const ControlFrame& frame) { handle(rank, frame); });
  check_silence();
  check_deadlines();
  for (Lane& lane : lanes_) {
    if (!lane.runs.empty()) tell_status(*lane.runs.front());
  }
  for (const auto& run : trailing_) tell_status(*run);
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
  if (!run.execution && run.call.use && !run.call.use->earlier.empty()) {
    text += "; waiting for an earlier call on the same memory, or before this barrier";
  } else if (run.execution && run.execution->finished()) {
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

// A rank that left or died is an error only if something still needs it: it may have ended its
// part. A neighbour is gone once its control link says so. A rank on another node is gone once its
// stream has ended, behind all that it sent: another connection may be earlier, or later.
void Group::check_presence() const {
  for (const Lane& lane : lanes_) {
    if (!lane.runs.empty() && lane.runs.front()->execution) check_presence(lane);
  }
  for (const auto& run : trailing_) check_presence(*run);
  check_messages();
}

bool Group::gone(int rank) const {
  if (rank == topology_.rank) return false;
  if (topology_.node_of_rank[rank] != topology_.node_of_rank[topology_.rank]) {
    return messages_->ended(rank);
  }
  return control_.presence(rank) != ControlLinks::Presence::present;
}

void Group::check_presence(const Lane& lane) const {
  const Run& run = *lane.runs.front();
  const auto local = run.execution->waits_for_local();
  for (int i = 0; i < topology_.local_size; ++i) {
    const int rank = topology_.neighbours()[i];
    if (!gone(rank)) continue;
    if (lane.engine->stuck_on(rank) || local == i) throw BrokenStream(rank, describe(run.header));
  }
}

void Group::check_presence(const Run& run) const {
  if (!run.ticket) return;
  for (int i = 0; i < topology_.local_size; ++i) {
    const int rank = topology_.neighbours()[i];
    if (!gone(rank)) continue;
    const bool died = control_.presence(rank) != ControlLinks::Presence::left;
    if (device_stage_->waits_for(i, *run.ticket, died)) {
      throw BrokenStream(rank, describe(run.header));
    }
  }
}

void Group::check_messages() const {
  const Transfer* needed = nullptr;
  int last = -1, present = 0;
  for (int rank = 0; rank < topology_.world_size && !needed; ++rank) {
    if (rank == topology_.rank) continue;
    if (gone(rank)) {
      needed = messages_->waits_for(last = rank);
    } else {
      ++present;
    }
  }
  if (!needed && present == 0) {  // a receive from any rank has nobody left
    for (const auto& transfer : messages_->unfinished()) needed = transfer.get();
  }
  if (needed) throw BrokenStream(last, describe(*needed));
}

// A host that does not answer is lost to the group, and the group with it: every later collective
// needs it. So whatever is in flight ends here, and this rank tells the others.
void Group::check_silence() {
  const bool due = looked_ - heard_ >= kSilenceInterval;
  if (due) control_.check_silence(config_.dead_after);
  if (control_.lost() >= 0) {
    if (const auto what = in_flight()) throw BrokenStream(control_.lost(), *what, true);
  }
  if (!due) return;
  heard_ = looked_;
  // A network of several ways may lose one connection of a pair alone.
  const auto check = [&](const Channel* channel, int rank, const std::string& what) {
    if (!channel || channel->fd() < 0) return;
    if (seconds_unanswered(channel->fd()) >= config_.dead_after) {
      throw BrokenStream(rank, what, true);
    }
  };
  for (int rank = 0; rank < topology_.world_size; ++rank) {
    for (const Lane& lane : lanes_) {
      if (lane.runs.empty() || !lane.engine->stuck_on(rank)) continue;
      check(lane.channels[rank].get(), rank, describe(lane.runs.front()->header));
    }
    const Transfer* transfer = messages_->waits_for(rank);
    if (transfer) check(message_channels_[rank].get(), rank, describe(*transfer));
  }
}

// What this rank is in, in words.
std::optional<std::string> Group::in_flight() const {
  for (const Lane& lane : lanes_) {
    if (!lane.runs.empty()) return describe(lane.runs.front()->header);
  }
  if (!trailing_.empty()) return describe(trailing_.front()->header);
  if (!messages_->idle()) return describe(*messages_->unfinished().front());
  return std::nullopt;
}

std::string Group::fate_of(int rank, bool unanswered) const {
  const std::string name = "rank " + std::to_string(rank);
  const std::string& host = config_.hosts.at(static_cast<size_t>(rank));
  const auto presence = control_.presence(rank);
  if (presence == ControlLinks::Presence::left) {
    return name + " left the group (it closed or destroyed it)";
  }
  if (presence == ControlLinks::Presence::lost || unanswered) {
    return host + ", the host of " + name + ", has not answered for " +
           seconds_text(config_.dead_after) + " s (it is down, or the network to it),";
  }
  const bool sure = presence == ControlLinks::Presence::died;
  return name + " on " + host + (sure ? " has died" : " has probably died");
}

// A broken stream is often the echo of an error elsewhere: its reason comes over the control link
// of the same peer, before that ends.
std::exception_ptr Group::cause_of(const BrokenStream& broken) {
  const auto until = Clock::now() + kCauseWait;
  try {
    for (;;) {
      control_.receive([this](int rank, const ControlFrame& frame) { handle(rank, frame); });
      const bool present = control_.presence(broken.rank) == ControlLinks::Presence::present;
      if (!present || broken.unanswered || Clock::now() >= until) break;
      poll_fds_.clear();
      control_.poll_fds(poll_fds_);
      ::poll(poll_fds_.data(), poll_fds_.size(), kCausePollMs);
    }
  } catch (...) {
    return std::current_exception();
  }
  return std::make_exception_ptr(PeerError(
      broken.rank, fate_of(broken.rank, broken.unanswered) + " while rank " +
                       std::to_string(topology_.rank) + " needs it for " + broken.what()));
}

void Group::fail(std::exception_ptr error) {
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
  if (inherited()) return;  // a signal handler has forked: all of this is the parent's
  fail(error);              // from here on nothing more is admitted
  std::vector<std::shared_ptr<Work>> works;
  for (Lane& lane : lanes_) {
    for (const auto& run : lane.runs) works.push_back(run->work);
    lane.runs.clear();
  }
  for (const auto& run : trailing_) works.push_back(run->work);
  trailing_.clear();
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
  // Last of all, since it may wait for what its streams wait for: the flags of all runs.
  if (device_stage_) device_stage_->abandon();
  for (const auto& work : works) work->finish(error);
  for (const auto& transfer : transfers) transfer->ended(error);
}

void Group::throw_failure() const {
  throw AbortedError("this group has failed and cannot be used any more (make a new one): " +
                     error_text_);
}
}  // namespace hier
