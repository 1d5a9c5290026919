// Matching of point-to-point messages, and their way over the channels.
#include "engine/messages.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"

namespace hier {

namespace {

using Type = MessageHeader::Type;

constexpr int kCallsPerTurn = 16;      // to one channel and direction
constexpr unsigned kListenEvery = 16;  // turns between two looks at peers that nobody waits for

size_t trailer_bytes(bool checked, size_t payload) {
  return checked && payload > 0 ? sizeof(Trailer) : 0;
}

bool has_payload(Type type) { return type == Type::eager || type == Type::data; }

bool matches(const Transfer& receive, int source, int tag) {
  return (receive.peer == kAnySource || receive.peer == source) &&
         (receive.tag == kAnyTag || receive.tag == tag);
}

}  // namespace

Messages::Messages(int rank, uint32_t group_id, uint16_t generation, std::vector<Channel*> channels)
    : rank_(rank), group_id_(group_id), generation_(generation), peers_(channels.size()) {
  for (size_t i = 0; i < channels.size(); ++i) {
    peers_[i].channel = channels[i];
    peers_[i].silent = channels[i] && !channels[i]->connected();
  }
}

MessageHeader Messages::header_of(Type type, const Peer& peer) const {
  MessageHeader header;
  header.type = type;
  header.generation = generation_;
  header.group_id = group_id_;
  header.consumed = peer.consumed;
  return header;
}

void Messages::push(Peer& peer, const MessageHeader& header, std::shared_ptr<Transfer> transfer) {
  peer.outgoing.push_back({{header, {}}, std::move(transfer)});
}

void Messages::post(const std::deque<std::shared_ptr<Transfer>>& transfers) {
  for (const auto& transfer : transfers) {  // all of them, even if one throws below
    transfer->place = unfinished_.insert(unfinished_.end(), transfer);
  }
  for (const auto& transfer : transfers) {
    if (transfer->send) {
      post_send(transfer);
    } else {
      post_receive(transfer);
    }
  }
}

void Messages::post_send(const std::shared_ptr<Transfer>& transfer) {
  Peer& peer = peers_[transfer->peer];
  const uint64_t set_aside = peer.eager_sent - peer.eager_taken + weight(transfer->bytes);
  const bool eager = transfer->bytes <= kEagerBytes && set_aside <= kEagerWindow;
  MessageHeader header = header_of(eager ? Type::eager : Type::announce, peer);
  header.dtype = transfer->dtype;
  header.tag = transfer->tag;
  header.bytes = transfer->bytes;
  if (eager) {
    peer.eager_sent += weight(transfer->bytes);
    push(peer, header, transfer);
  } else {
    header.id = next_id_++;
    peer.announced.emplace(header.id, transfer);
    push(peer, header);
  }
}

void Messages::post_receive(const std::shared_ptr<Transfer>& transfer) {
  const auto unexpected =
      std::find_if(unexpected_.begin(), unexpected_.end(), [&](const Unexpected& e) {
        return !e.claimed && matches(*transfer, e.source, e.header.tag);
      });
  if (unexpected == unexpected_.end()) {
    posted_.push_back(transfer);
  } else {
    take_unexpected(unexpected, transfer);
  }
}

void Messages::grant(Peer& peer, uint64_t id) {
  MessageHeader header = header_of(Type::grant, peer);
  header.id = id;
  push(peer, header);
}

// The receive becomes one from `source`, whose message must be what it expects.
void Messages::match(int source, const MessageHeader& header, Transfer& receive) const {
  receive.peer = source;
  receive.tag = header.tag;
  if (header.bytes == receive.bytes && header.dtype == receive.dtype) return;
  throw MismatchError("ranks disagree: rank " + std::to_string(source) + " sends " +
                      amount(header.dtype, header.bytes) + " with tag " +
                      std::to_string(header.tag) + ", and rank " + std::to_string(rank_) +
                      " receives it as " + amount(receive.dtype, receive.bytes) +
                      ". Both must give one dtype and number of elements");
}

void Messages::finish(const std::shared_ptr<Transfer>& transfer) {
  unfinished_.erase(transfer->place);
  transfer->ended(nullptr);
}

std::list<std::shared_ptr<Transfer>> Messages::take_unfinished() {
  posted_.clear();
  unexpected_.clear();
  for (Peer& peer : peers_) {
    Channel* channel = peer.channel;
    peer = {};
    peer.channel = channel;
  }
  return std::exchange(unfinished_, {});
}

bool Messages::progress() {
  // A peer of which nothing is wanted may yet wait for us to take what it sends, and a rank that is
  // in a collective must do so: the peer may have to send before it can enter.
  const bool now_and_then = ++turns_ % kListenEvery == 0;
  if (unfinished_.empty() && !now_and_then) return false;
  bool moved = false;
  for (size_t i = 0; i < peers_.size(); ++i) {
    Peer& peer = peers_[i];
    const auto rank = static_cast<int>(i);
    if (!peer.channel) continue;
    const bool cheap = !peer.channel->over_network();  // to look into a ring is no system call
    const bool look = cheap || (now_and_then && !unfinished_.empty());
    if (look || wanted(rank, peer)) moved |= advance(rank, peer);
  }
  return moved;
}

bool Messages::listen(bool sockets) {
  bool moved = false;
  for (size_t i = 0; i < peers_.size(); ++i) {
    Channel* channel = peers_[i].channel;
    if (!channel) continue;
    if (channel->over_network() && !sockets && !channel->has_read_ahead()) continue;
    moved |= advance(static_cast<int>(i), peers_[i]);
  }
  return moved;
}

bool Messages::wanted(int rank, const Peer& peer) const {
  return !peer.outgoing.empty() || !peer.announced.empty() || !peer.granted.empty() ||
         !peer.fetched.empty() || peer.header_done > 0 ||
         std::any_of(posted_.begin(), posted_.end(), [&](const auto& receive) {
           return receive->peer == kAnySource || receive->peer == rank;
         });
}

bool Messages::advance(int rank, Peer& peer) {
  bool moved = false;
  if (said_last_) tell_last(peer);
  try {
    for (int i = 0; i < kCallsPerTurn && receive_some(rank, peer); ++i) moved = true;
  } catch (const ChannelBroken& why) {
    peer.ended = any_ended_ = true;
    if (!dynamic_cast<const EndOfStream*>(&why)) peer.silent = false;  // something may be lost
    if (waits_for(rank)) broken(rank, why);
  } catch (const Damaged&) {
    damaged(rank, peer);
  }
  try {
    if (peer.ended && !peer.outgoing.empty()) throw ChannelBroken("closed by the peer before");
    for (int i = 0; i < kCallsPerTurn && send_some(peer); ++i) moved = true;
  } catch (const ChannelBroken& why) {
    const bool sends = std::any_of(peer.outgoing.begin(), peer.outgoing.end(),
                                   [](const Outgoing& out) { return out.transfer != nullptr; });
    if (sends) broken(rank, why);
    // The peer takes nothing any more. What it has sent may still come: the end of that decides.
    peer.outgoing.clear();
  }
  return moved;
}

// Header, payload and trailer leave in one call, so that a small message costs one system call.
bool Messages::send_some(Peer& peer) {
  if (peer.outgoing.empty()) return false;
  Outgoing& out = peer.outgoing.front();
  const bool checked = peer.channel->checked();
  const size_t head = out.opening.bytes(checked), payload = out.transfer ? out.transfer->bytes : 0;
  const size_t end = head + payload + trailer_bytes(checked, payload);
  std::array<Bytes, 3> parts;
  if (out.sent < head) parts[0] = out.opening.to_send(checked).subspan(out.sent);
  const size_t done = std::min(out.sent - std::min(out.sent, head), payload);
  const size_t next = std::min(payload - done, peer.channel->quantum());
  if (next > 0) parts[1] = {out.transfer->data + done, next};
  Trailer trailer;
  if (end > head + payload) {
    out.sum.cover(out.transfer->data, done + next);
    trailer = out.sum.trailer();
    if (done + next == payload)
      parts[2] = trailer.bytes().last(end - std::max(out.sent, head + payload));
  }
  const size_t sent = peer.channel->try_write(parts);
  out.sent += sent;
  if (out.sent < end) return sent > 0;
  const auto transfer = std::move(out.transfer);
  peer.outgoing.pop_front();
  if (transfer) finish(transfer);
  return true;
}

bool Messages::receive_header(int rank, Peer& peer) {
  const bool checked = peer.channel->checked();
  const auto whole = peer.opening.room(checked);
  const size_t n = peer.channel->try_read(whole.subspan(peer.header_done));
  peer.header_done += n;
  if (peer.header_done < whole.size()) return n > 0;
  if (checked) peer.opening.check();
  const MessageHeader& header = peer.opening.header;
  peer.silent = false;
  opened(rank, peer);
  if (!has_payload(header.type) || header.bytes == 0) arrived(rank, peer);
  return true;
}

bool Messages::receive_some(int rank, Peer& peer) {
  if (peer.ended) return false;
  const bool checked = peer.channel->checked();
  if (peer.header_done < peer.opening.bytes(checked)) return receive_header(rank, peer);
  const size_t bytes = peer.opening.header.bytes;
  std::byte* to = peer.receiver ? peer.receiver->data : peer.unexpected->payload.data();
  const auto trailer = peer.trailer.room().first(trailer_bytes(checked, bytes));
  size_t n = 0;
  if (peer.payload_done >= bytes) {
    n = peer.channel->try_read(trailer.subspan(peer.payload_done - bytes));
  } else {
    const size_t left = bytes - peer.payload_done, most = std::min(left, peer.channel->quantum());
    const std::span<std::byte> dst(to + peer.payload_done, most);
    n = peer.channel->try_read_both(dst, most == left ? trailer : std::span<std::byte>());
    if (checked) peer.sum.add(dst.first(std::min(n, most)));
  }
  peer.payload_done += n;
  if (peer.payload_done == bytes + trailer.size()) {
    if (checked) peer.sum.check(peer.trailer);
    arrived(rank, peer);
  }
  return n > 0;
}

// A header has come: finds where the payload goes.
void Messages::opened(int rank, Peer& peer) {
  const MessageHeader& header = peer.opening.header;
  if (header.magic != MessageHeader::kMagic || header.group_id != group_id_ ||
      header.generation != generation_) {
    corrupt(rank, "what comes is no message of this group");
  }
  peer.eager_taken = std::max(peer.eager_taken, std::min(header.consumed, peer.eager_sent));
  if (header.type == Type::data) {
    if (const auto fetched = peer.fetched.extract(header.id)) {
      peer.unexpected = fetched.mapped();
      if (peer.unexpected->header.bytes != header.bytes)
        corrupt(rank, "another size than announced");
      return;
    }
    const auto granted = peer.granted.find(header.id);
    if (granted == peer.granted.end() || granted->second->bytes != header.bytes) {
      corrupt(rank, "data come for which nobody has asked");
    }
    peer.receiver = granted->second;
    peer.granted.erase(granted);
    return;
  }
  if (header.type == Type::grant || header.type == Type::last) return;
  if (header.type != Type::eager && header.type != Type::announce) corrupt(rank, "unknown type");
  if (header.type == Type::eager && header.bytes > kEagerBytes) corrupt(rank, "unlikely size");
  const auto receive = std::find_if(posted_.begin(), posted_.end(), [&](const auto& posted) {
    return matches(*posted, rank, header.tag);
  });
  if (receive != posted_.end()) {
    match(rank, header, **receive);
    peer.receiver = *receive;
    posted_.erase(receive);
    return;
  }
  peer.unexpected = &unexpected_.emplace_back(Unexpected{rank, header, {}, false, false, nullptr});
  set_aside(peer, *peer.unexpected);
}

// A message is there, with its payload if it has one.
void Messages::arrived(int rank, Peer& peer) {
  const MessageHeader header = peer.opening.header;
  const auto receiver = std::exchange(peer.receiver, nullptr);
  Unexpected* const unexpected = std::exchange(peer.unexpected, nullptr);
  peer.header_done = peer.payload_done = 0;
  peer.sum = {};
  if (header.type == Type::last) {
    peer.last = any_last_ = true;
  } else if (header.type == Type::grant) {
    const auto announced = peer.announced.find(header.id);
    if (announced == peer.announced.end()) corrupt(rank, "a grant for no message");
    MessageHeader data = header_of(Type::data, peer);
    data.dtype = announced->second->dtype;
    data.tag = announced->second->tag;
    data.bytes = announced->second->bytes;
    data.id = header.id;
    push(peer, data, std::move(announced->second));
    peer.announced.erase(announced);
  } else if (receiver && header.type == Type::announce) {
    peer.granted.emplace(header.id, receiver);
    grant(peer, header.id);
  } else if (receiver) {
    if (header.type == Type::eager) peer.consumed += weight(header.bytes);
    finish(receiver);
  } else {
    unexpected->whole = has_payload(header.type);
    if (!unexpected->whole || !unexpected->claimed) return;
    const auto it = std::find_if(unexpected_.begin(), unexpected_.end(),
                                 [&](const Unexpected& e) { return &e == unexpected; });
    take_unexpected(it, unexpected->claimed);
  }
}

void Messages::blocked_on(std::vector<pollfd>& fds) const {
  for (const Peer& peer : peers_) {
    if (!peer.channel || peer.channel->fd() < 0 || (peer.ended && peer.outgoing.empty())) continue;
    const int events = (peer.ended ? 0 : POLLIN) | (peer.outgoing.empty() ? 0 : POLLOUT);
    fds.push_back({peer.channel->fd(), static_cast<short>(events), 0});
  }
}

const Transfer* Messages::waits_for(int rank) const {
  const Peer& peer = peers_[rank];
  if (!peer.announced.empty()) return peer.announced.begin()->second.get();
  if (!peer.granted.empty()) return peer.granted.begin()->second.get();
  if (peer.receiver) return peer.receiver.get();
  if (peer.unexpected && peer.unexpected->claimed) return peer.unexpected->claimed.get();
  for (const auto& [id, unexpected] : peer.fetched) {
    if (unexpected->claimed) return unexpected->claimed.get();
  }
  for (const Outgoing& out : peer.outgoing) {
    if (out.transfer) return out.transfer.get();
  }
  for (const auto& receive : posted_) {
    if (receive->peer == rank && !peer.last) return receive.get();  // else it is hopeless
  }
  return nullptr;
}

}  // namespace hier
