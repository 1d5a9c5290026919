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
    std::chrono::milliseconds(250);   // between two questions to the kernel
constexpr size_t kLongestList = 100;  // of ranks, in characters

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
      control_(config.rank, std::move(control)) {}

void Watch::look_around(Clock::time_point now) {
  looked_ = now;
  receive();
  check_silence();
  control_.tell_gone();
  ask_for_needed(now);
  check_deadlines(now);
  const bool again = std::exchange(entered_news_, false) && control_.sparse();
  lanes_.for_each_current([&](Run& run) {
    run.told_status &= !again;
    tell_status(run, now);
  });
}

void Watch::receive() {
  receive([this](int rank, const ControlFrame& frame) { handle(rank, frame); });
}

void Watch::receive(const std::function<void(int rank, const ControlFrame&)>& handle) {
  while (!kept_.empty()) {
    const auto [rank, frame] = kept_.front();
    kept_.pop_front();
    handle(rank, frame);
  }
  control_.receive(handle);
}

void Watch::pass_on() {
  control_.receive([this](int rank, const ControlFrame& frame) {
    const bool first = std::ranges::none_of(
        kept_, [](const auto& kept) { return kept.second.type == ControlFrame::Type::abort; });
    if (frame.type == ControlFrame::Type::abort && first) {
      tell(frame_of(error_of(rank, frame), topology_.rank));
    }
    kept_.emplace_back(rank, frame);
  });
  control_.tell_gone();
}

std::vector<int> Watch::gone_ranks() {
  pass_on();
  std::vector<int> gone;
  for (int rank = 0; rank < topology_.world_size; ++rank) {
    if (control_.presence(rank) != ControlLinks::Presence::present) gone.push_back(rank);
  }
  return gone;
}

void Watch::handle(int rank, const ControlFrame& frame) {
  if (frame.type == ControlFrame::Type::abort) std::rethrow_exception(error_of(rank, frame));
  if (frame.type != ControlFrame::Type::status) return;
  RunHeader theirs;
  std::memcpy(&theirs, frame.header.data(), sizeof theirs);
  statuses_[rank] = theirs;
  hear_entered(rank, theirs.run);
  const auto known = std::min<size_t>(topology_.world_size, ControlFrame::kBits);
  for (size_t other = 0; other < known; ++other) {
    if (frame.bit(other)) hear_entered(static_cast<int>(other), theirs.run);
  }
  const auto compare = [&](const RunHeader& mine) {
    if (mine.run != theirs.run) return;
    if (auto wrong = disagreement(mine, theirs, rank)) throw MismatchError(*wrong);
  };
  lanes_.for_each_run([&](const Run& run) { compare(run.header); });
  for (const RunHeader& ended : lanes_.history()) compare(ended);
}

// Whoever writes connects. A rank that only waits for another one connects too, if that is gone or
// does not come: the attempt tells what became of it, whoever else might have.
void Watch::ask_for_needed(Clock::time_point now) const {
  const auto since = [&](const auto& late) {
    return Seconds(now - late.begun).count() >= config_.status_after;
  };
  for (int rank = 0; rank < topology_.world_size; ++rank) {
    Channel* channel = message_channels_[rank].get();
    if (!channel || channel->connected()) continue;
    const bool is_gone = control_.presence(rank) != ControlLinks::Presence::present;
    const bool run = std::ranges::any_of(lanes_.lanes(), [&](const Lane& lane) {
      return !lane.runs.empty() && lane.engine->stuck_on(rank) &&
             (is_gone || since(*lane.runs.front()));
    });
    const bool message = std::ranges::any_of(messages_.unfinished(), [&](const auto& transfer) {
      const bool any = !transfer->send && transfer->peer == kAnySource;
      return (any && is_gone) || (transfer->peer == rank && (is_gone || since(*transfer)));
    });
    if (run || message) channel->want();
  }
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
  for (const auto& [rank, entered] : entered_) {
    const auto bit = static_cast<size_t>(rank);
    if (entered >= run.header.run && bit < ControlFrame::kBits) status.set_bit(bit);
  }
  tell(status);
  for (const auto& [rank, theirs] : statuses_) {
    if (theirs.run != run.header.run) continue;
    if (auto wrong = disagreement(run.header, theirs, rank)) throw MismatchError(*wrong);
  }
}

void Watch::hear_entered(int rank, uint32_t run) {
  if (has_entered(rank, run)) return;
  entered_[rank] = run;
  entered_news_ = true;
}

bool Watch::has_entered(int rank, uint32_t run) const {
  const auto entered = entered_.find(rank);
  return rank == topology_.rank || (entered != entered_.end() && entered->second >= run);
}

Clock::time_point Watch::first_deadline() const {
  auto first = Clock::time_point::max();
  lanes_.for_each_run([&](const Run& run) { first = std::min(first, run.deadline); });
  for (const auto& transfer : messages_.unfinished()) first = std::min(first, transfer->deadline);
  return first;
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
  int unnamed = 0;
  for (int rank = 0; rank < topology_.world_size; ++rank) {
    const bool never_told = control_.sparse() && static_cast<size_t>(rank) >= ControlFrame::kBits;
    if (never_told || has_entered(rank, run.header.run)) continue;
    if (absent.size() >= kLongestList) {
      ++unnamed;
      continue;
    }
    absent += (absent.empty() ? "" : ", ") + std::to_string(rank);
  }
  if (unnamed > 0) absent += " and " + std::to_string(unnamed) + " more";
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
    const auto presence = control_.presence(rank);
    const bool died =
        presence != ControlLinks::Presence::left && presence != ControlLinks::Presence::failed;
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
  const bool due = looked_ - heard_ >= kSilenceInterval && !config_.one_host;
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
  if (presence == ControlLinks::Presence::failed) {
    return name + " left the group, which had failed there,";
  }
  if (presence == ControlLinks::Presence::left) {
    return name + " left the group (it closed or destroyed it)";
  }
  if (presence == ControlLinks::Presence::lost || unanswered) {
    return host + ", the host of " + name + ", has not answered for " +
           seconds_text(config_.dead_after) + " s (it is down, or the network to it),";
  }
  if (unknown(rank)) {
    return name + " on " + host + " is gone (it has left or died; those who knew have left too)";
  }
  const bool sure = presence == ControlLinks::Presence::died;
  return name + " on " + host + (sure ? " has died" : " has probably died");
}

bool Watch::unknown(int rank) const {
  return control_.sparse() && control_.presence(rank) == ControlLinks::Presence::present;
}

bool Watch::may_have_left(int rank) const {
  return unknown(rank) || control_.presence(rank) == ControlLinks::Presence::left;
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
  if (present && !broken.unanswered && wait && control_.any_open()) return nullptr;
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
      receive(hear);
      all_read = true;
    } catch (const Error& heard) {
      error = heard.what();
      if (control_.sparse()) tell(frame_of(std::current_exception(), topology_.rank));
    }
  }
  control_.tell_gone();
  ControlFrame goodbye;
  goodbye.type = ControlFrame::Type::goodbye;
  if (failed || !error.empty()) goodbye.culprit = topology_.rank;
  tell(goodbye);
  control_.close();
  return error;
}

}  // namespace hier
