// Messages when ranks leave in order: which receives are hopeless then.
#include <algorithm>
#include <utility>

#include "engine/messages.h"

namespace hier {

bool Messages::say_last() {
  if (std::exchange(said_last_, true)) return false;
  for (Peer& peer : peers_) tell_last(peer);
  // Of a peer that is not connected this rank would never hear it.
  for (const auto& receive : posted_) {
    for (size_t i = 0; i < peers_.size(); ++i) {
      const bool from = receive->peer == kAnySource || receive->peer == static_cast<int>(i);
      if (from && peers_[i].channel) peers_[i].channel->want();
    }
  }
  return true;
}

void Messages::tell_last(Peer& peer) {
  if (!peer.channel || peer.ended || peer.told_last) return;
  if (!peer.channel->connected() && peer.outgoing.empty()) return;
  peer.told_last = true;
  push(peer, header_of(MessageHeader::Type::last, peer));
}

bool Messages::excuse(int rank) {
  Peer& peer = peers_[rank];
  if (!peer.silent || !peer.ended || peer.header_done > 0 || !waits_for(rank)) return false;
  peer.last = any_last_ = true;
  return waits_for(rank) == nullptr;
}

bool Messages::flushed() const {
  return std::all_of(peers_.begin(), peers_.end(),
                     [](const Peer& peer) { return peer.ended || peer.outgoing.empty(); });
}

bool Messages::hopeless(const Transfer& receive) const {
  const auto silent = [](const Peer& peer) { return !peer.channel || peer.last; };
  if (receive.peer != kAnySource) return silent(peers_[receive.peer]);
  return std::all_of(peers_.begin(), peers_.end(), silent);
}

std::shared_ptr<Transfer> Messages::hopeless_receive() const {
  const auto found =
      std::ranges::find_if(posted_, [this](const auto& receive) { return hopeless(*receive); });
  return found == posted_.end() ? nullptr : *found;
}

void Messages::drop(const std::shared_ptr<Transfer>& receive) noexcept {
  posted_.remove(receive);
  unfinished_.erase(receive->place);
}

}  // namespace hier
