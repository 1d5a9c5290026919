// Looking around, and what is found in words.
#include "group/watch.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "group/failure.h"

namespace hier {

namespace {

constexpr auto kSilenceInterval =
    std::chrono::milliseconds(250);  // between two questions to the kernel

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

}  // namespace

Watch::Watch(const GroupConfig& config, const Topology& topology, const Lanes& lanes,
             const Messages& messages, const Channels& message_channels, Channels control)
    : config_(config),
      topology_(topology),
      lanes_(lanes),
      messages_(messages),
      message_channels_(message_channels),
      control_(std::move(control)) {}

void Watch::look_around(Clock::time_point now) {
  looked_ = now;
  receive();
  check_silence();
  check_deadlines(now);
  lanes_.for_each_current([&](Run& run) { tell_status(run, now); });
}

void Watch::receive() {
  control_.receive([this](int rank, const ControlFrame& frame) { handle(rank, frame); });
}

void Watch::handle(int rank, const ControlFrame& frame) {
  if (frame.type == ControlFrame::Type::abort) std::rethrow_exception(error_of(rank, frame));
  if (frame.type != ControlFrame::Type::status) return;
  RunHeader theirs;
  std::memcpy(&theirs, frame.header.data(), sizeof theirs);
  statuses_[rank] = theirs;
  const auto compare = [&](const RunHeader& mine) {
    if (mine.run != theirs.run) return;
    if (auto wrong = disagreement(mine, theirs, rank)) throw MismatchError(*wrong);
  };
  lanes_.for_each_run([&](const Run& run) { compare(run.header); });
  for (const RunHeader& ended : lanes_.history()) compare(ended);
}

void Watch::tell_status(Run& run, Clock::time_point now) {
  if (run.told_status) return;
  const double patience =
      std::min(config_.status_after, Seconds(run.deadline - run.begun).count() / 4);
  if (Seconds(now - run.begun).count() < patience) return;
  run.told_status = true;
  ControlFrame status;
  status.type = ControlFrame::Type::status;
  std::memcpy(status.header.data(), &run.header, sizeof run.header);
  tell(status);
  for (const auto& [rank, theirs] : statuses_) {
    if (theirs.run != run.header.run) continue;
    if (auto wrong = disagreement(run.header, theirs, rank)) throw MismatchError(*wrong);
  }
}

void Watch::check_deadlines(Clock::time_point now) const {
  lanes_.for_each_run([&](const Run& run) {
    if (now >= run.deadline) time_out(run);
  });
  for (const auto& transfer : messages_.unfinished()) {
    if (now >= transfer->deadline) time_out(*transfer);
  }
}

void Watch::time_out(const Run& run) const {
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

void Watch::time_out(const Transfer& transfer) const {
  std::string text = timed_out(describe(transfer), transfer, topology_.rank);
  const std::string others = messages_.others_from(transfer);
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
void Watch::check_presence() const {
  for (const Lane& lane : lanes_.lanes()) {
    if (!lane.runs.empty() && lane.runs.front()->execution) check_presence(lane);
  }
  for (const auto& run : lanes_.trailing()) check_presence(*run);
  check_messages();
}

bool Watch::gone(int rank) const {
  if (rank == topology_.rank) return false;
  if (topology_.node_of_rank[rank] != topology_.node_of_rank[topology_.rank]) {
    return messages_.ended(rank);
  }
  return control_.presence(rank) != ControlLinks::Presence::present;
}

void Watch::check_presence(const Lane& lane) const {
  const Run& run = *lane.runs.front();
  const auto local = run.execution->waits_for_local();
  for (int i = 0; i < topology_.local_size; ++i) {
    const int rank = topology_.neighbours()[i];
    if (!gone(rank)) continue;
    if (lane.engine->stuck_on(rank) || local == i) throw BrokenStream(rank, describe(run.header));
  }
}

void Watch::check_presence(const Run& run) const {
  if (!run.between_devices) return;
  for (int i = 0; i < topology_.local_size; ++i) {
    const int rank = topology_.neighbours()[i];
    if (!gone(rank)) continue;
    const bool died = control_.presence(rank) != ControlLinks::Presence::left;
    if (run.between_devices->stage->waits_for(i, run.between_devices->ticket, died)) {
      throw BrokenStream(rank, describe(run.header));
    }
  }
}

void Watch::check_messages() const {
  int lost = -1;  // one that is gone without a word
  bool others = false;
  for (int rank = 0; rank < topology_.world_size; ++rank) {
    if (rank == topology_.rank) continue;
    if (!gone(rank)) {
      others |= !messages_.left(rank);
      continue;
    }
    const Transfer* needs = messages_.waits_for(rank);
    if (needs) throw BrokenStream(rank, describe(*needs));
    if (!messages_.left(rank)) lost = rank;
  }
  if (lost < 0 || others) return;
  for (const auto& transfer : messages_.unfinished()) {  // nobody is left to send it
    const bool from_any = !transfer->send && transfer->peer == kAnySource;
    if (from_any) throw BrokenStream(lost, describe(*transfer));
  }
}

// A host that does not answer is lost to the group, and the group with it: every later collective
// needs it. So whatever is in flight ends here, and this rank tells the others.
void Watch::check_silence() {
  const bool due = looked_ - heard_ >= kSilenceInterval;
  if (due) control_.check_silence(config_.dead_after);
  if (control_.lost() >= 0) {
    if (const auto what = in_flight()) throw BrokenStream(control_.lost(), *what, true);
  }
  if (!due) return;
  heard_ = looked_;
  // A network of several ways may lose one connection of a pair alone.
  const auto check = [&](const Channel* channel, int rank, const std::string& what) {
    if (channel && channel->seconds_unanswered() >= config_.dead_after) {
      throw BrokenStream(rank, what, true);
    }
  };
  for (int rank = 0; rank < topology_.world_size; ++rank) {
    for (const Lane& lane : lanes_.lanes()) {
      if (lane.runs.empty() || !lane.engine->stuck_on(rank)) continue;
      check(lane.channels[rank].get(), rank, describe(lane.runs.front()->header));
    }
    const Transfer* transfer = messages_.waits_for(rank);
    if (transfer) check(message_channels_[rank].get(), rank, describe(*transfer));
  }
}

// What this rank is in, in words.
std::optional<std::string> Watch::in_flight() const {
  for (const Lane& lane : lanes_.lanes()) {
    if (!lane.runs.empty()) return describe(lane.runs.front()->header);
  }
  if (!lanes_.trailing().empty()) return describe(lanes_.trailing().front()->header);
  if (!messages_.idle()) return describe(*messages_.unfinished().front());
  return std::nullopt;
}

std::string Watch::fate_of(int rank, bool unanswered) const {
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

// It is often the echo of an error elsewhere, whose reason comes over the control link of the same
// peer, before that ends.
std::exception_ptr Watch::cause_of(const BrokenStream& broken, bool wait) {
  try {
    receive();
  } catch (...) {
    return std::current_exception();
  }
  const bool present = control_.presence(broken.rank) == ControlLinks::Presence::present;
  if (present && !broken.unanswered && wait) return nullptr;
  return std::make_exception_ptr(PeerError(
      broken.rank, fate_of(broken.rank, broken.unanswered) + " while rank " +
                       std::to_string(topology_.rank) + " needs it for " + broken.what()));
}

// All frames are read: unread ones would reset the connection. An error of another rank's may be of
// what this rank has sent last, and no call of its own has met it.
std::string Watch::leave(bool failed) {
  std::string error;
  const auto hear = [&](int rank, const ControlFrame& frame) {
    if (!failed && error.empty()) handle(rank, frame);
  };
  for (bool all_read = false; !all_read;) {
    try {
      control_.receive(hear);
      all_read = true;
    } catch (const Error& heard) {
      error = heard.what();
    }
  }
  ControlFrame goodbye;
  goodbye.type = ControlFrame::Type::goodbye;
  tell(goodbye);
  control_.close();
  return error;
}

}  // namespace hier
