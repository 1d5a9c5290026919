// Steps of a member, and its end.
#include "group/member.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "group/check.h"

namespace hier {

namespace {

constexpr auto kDeviceInterval = std::chrono::microseconds(50);  // it cannot ring: it is looked at
// Longest wait for the reason behind a broken stream, if the control link of that peer goes on.
constexpr auto kCauseWait = std::chrono::milliseconds(200);
constexpr auto kCauseWaitAfar = std::chrono::seconds(1);  // where it comes by way of others

// Closing a socket with unread bytes would destroy what it has still to send.
void discard_unread(Channel& channel) {
  std::array<std::byte, 4096> scrap;
  try {
    while (channel.try_read(scrap) > 0) continue;
  } catch (const ChannelBroken&) {
    return;
  }
}

void check_message(const Message& m, const Topology& topology) {
  const std::string what = m.send ? "send: " : "recv: ";
  const bool any = !m.send && m.peer == kAnySource;
  if (!any && (m.peer < 0 || m.peer >= topology.world_size)) {
    throw UsageError(what + "rank " + std::to_string(m.peer) + " is outside this group of " +
                     std::to_string(topology.world_size) + " ranks");
  }
  if (m.peer == topology.rank || topology.world_size == 1) {
    throw UsageError(what + "rank " + std::to_string(topology.rank) +
                     " cannot exchange messages with itself; copy the array");
  }
  if (m.tag < 0 && (m.send || m.tag != kAnyTag)) {
    throw UsageError(what + "tag " + std::to_string(m.tag) + " is negative");
  }
  check_address(m.send ? "send" : "recv", m.data, m.count, m.dtype, topology.rank);
}

}  // namespace

Member::Member(const GroupConfig& config, const Topology& topology, Links links,
               const std::shared_ptr<Arena>& arena, Doorbells* bells,
               std::function<void()> at_failure)
    : topology_(topology),
      at_failure_(std::move(at_failure)),
      lanes_(std::move(links.lanes), arena, topology.local_rank, bells),
      message_channels_(std::move(links.messages)),
      messages_(std::make_unique<Messages>(config.rank, config.group_id, config.generation,
                                           pointers(message_channels_))),
      watch_(config, topology, lanes_, *messages_, message_channels_, std::move(links.control)),
      ended_([this](Run& run) {
        end(*run.work, nullptr);
        if (run.call.use) run.call.use->end_run();
      }) {}

std::shared_ptr<Transfer> Member::make_transfer(const Message& message,
                                                const std::shared_ptr<Work>& work,
                                                Clock::time_point now, double timeout) {
  check_message(message, topology_);
  auto transfer = std::make_shared<Transfer>();
  transfer->send = message.send;
  transfer->peer = message.peer;
  transfer->tag = message.tag;
  transfer->data = static_cast<std::byte*>(message.data);
  transfer->bytes = message.count * size_of(message.dtype);
  transfer->dtype = message.dtype;
  transfer->begun = now;
  transfer->deadline = after(message.timeout < 0 ? timeout : message.timeout, now);
  transfer->ended = [this, work, self = transfer.get()](const std::exception_ptr& error) {
    if (!error) {
      work->set_matched(self->peer, self->tag);
      traffic_.take(message_channels_);
    }
    end(*work, error);
  };
  return transfer;
}

void Member::accept(std::unique_ptr<Run> run) {
  if (!ended_with_) {
    lanes_.make_room(run->header.run) = std::move(run);
    return;
  }
  const auto work = run->work;
  run.reset();
  end(*work, ended_with_);
}

void Member::accept(std::deque<std::shared_ptr<Transfer>> transfers) {
  if (transfers.empty()) return;
  guarded([&] {
    messages_->post(std::exchange(transfers, {}));
    return true;
  });
  for (const auto& transfer : transfers) transfer->ended(ended_with_);  // refused
}

template <class Move>
bool Member::guarded(Move move) {
  if (ended_with_) {
    if (!ending_.all) end_all();
    return false;
  }
  try {
    failure_.check();
    return move();
  } catch (const BrokenStream& broken) {
    suspicion_.emplace(broken, std::nullopt);
  } catch (...) {
    end(std::current_exception());
  }
  return true;
}

bool Member::turn() {
  return guarded([this] { return !suspicion_ && move(); });
}

bool Member::move() {
  end_hopeless_receives();
  const bool moved = lanes_.turn(traffic_, ended_);
  return messages_->progress() || moved;
}

Progress Member::step(Clock::time_point now, Arrivals arrivals) {
  const bool moved = guarded([&] { return suspicion_ ? investigate(now) : look(now, arrivals); });
  if (suspicion_) return {moved, std::min(suspicion_->until.value_or(now), now + kLookInterval)};
  if (lanes_.waits_for_device()) return {moved, now + kDeviceInterval};
  return {moved, (ended_with_ ? now : watch_.looked()) + kLookInterval};
}

bool Member::look(Clock::time_point now, Arrivals arrivals) {
  if (arrivals.control || now - watch_.looked() >= kLookInterval) watch_.look_around(now);
  // Whoever was gone before this turn has nothing more to be read behind it.
  const bool gone = watch_.anybody_gone();
  bool moved = move();
  moved |= messages_->listen(arrivals.messages);
  if (gone && !moved) watch_.check_presence();
  return moved;
}

bool Member::investigate(Clock::time_point now) {
  if (!suspicion_->until) {
    const auto patience = watch_.hears_of_all() ? kCauseWait : kCauseWaitAfar;
    const auto in_time = std::max(now + kCauseWait, watch_.first_deadline());
    suspicion_->until = std::min(now + patience, in_time);
  }
  const int rank = suspicion_->broken.rank;
  const auto cause = watch_.cause_of(suspicion_->broken, now < *suspicion_->until);
  if (!cause) return false;
  if (!watch_.may_have_left(rank) || !messages_->excuse(rank)) std::rethrow_exception(cause);
  suspicion_.reset();
  return true;
}

// A rank that leaves in order says so behind its last message. A receive that waits for more ends
// alone, and the group goes on: other ranks may still be exchanging messages.
void Member::end_hopeless_receives() {
  if (draining_ && messages_->say_last()) messages_->listen(/*sockets=*/true);
  if (!draining_ && !messages_->any_last()) return;
  while (const auto receive = messages_->hopeless_receive()) {
    const auto error = error_of_hopeless(*receive);
    messages_->drop(receive);  // from here on it has to end
    receive->ended(error);
  }
}

std::exception_ptr Member::error_of_hopeless(const Transfer& receive) const {
  const std::string what = describe(receive) + ": ";
  if (draining_) {
    return std::make_exception_ptr(
        AbortedError(what + "the group is being destroyed, and no rank sends it"));
  }
  const bool any = receive.peer == kAnySource;
  const std::string who = any ? "all other ranks" : "rank " + std::to_string(receive.peer);
  const bool unknown = !any && watch_.unknown(receive.peer);
  return std::make_exception_ptr(
      PeerError(any ? topology_.rank : receive.peer,
                what + "no rank sends it: " + who +
                    (unknown ? " is gone" : " left the group (destroyed it)")));
}

Member::Places Member::blocked_on(std::vector<pollfd>& fds) const {
  Places places{fds.size(), fds.size()};
  if (!suspicion_) {
    lanes_.blocked_on(fds);
    places.messages = fds.size();
    messages_->blocked_on(fds);
    places.control = fds.size();
  }
  watch_.poll_fds(fds);
  return places;
}

void Member::fail(const std::exception_ptr& error) {
  const ControlFrame frame = frame_of(error, topology_.rank);
  failure_.set(error, frame.message(), [&] { watch_.tell(frame); });
}

void Member::end(const std::exception_ptr& error) {
  fail(error);  // from here on nothing more is admitted
  if (ended_with_) return;
  ended_with_ = error;
  suspicion_.reset();
  end_all();
}

// Memory may be what has failed: what could not be done is done at the next turn.
void Member::end_all() {
  auto transfers = messages_->take_unfinished();
  ending_.transfers.splice(ending_.transfers.end(), transfers);
  ending_.works.reserve(lanes_.num_runs());
  for (const auto& run : lanes_.take_all()) ending_.works.push_back(run->work);
  at_failure_();
  while (ending_.next < ending_.works.size()) end(*ending_.works[ending_.next++], ended_with_);
  ending_.works.clear(), ending_.next = 0;
  while (!ending_.transfers.empty()) {
    const auto transfer = std::move(ending_.transfers.front());
    ending_.transfers.pop_front();
    transfer->ended(ended_with_);
  }
  ending_.all = true;
}

// Counted down first: whoever waits for the work may look whether anything is in flight.
void Member::end(Work& work, const std::exception_ptr& error) {
  --in_flight_;
  work.finish(error);
}

bool Member::delivered() const {
  return std::all_of(message_channels_.begin(), message_channels_.end(),
                     [](const auto& channel) { return !channel || channel->delivered(); });
}

std::string Member::leave() {
  std::string heard = watch_.leave(failure_.is_set());
  lanes_.close();
  messages_.reset();
  for (const auto& channel : message_channels_) {
    if (channel) discard_unread(*channel);
  }
  message_channels_.clear();
  return heard;
}

}  // namespace hier
