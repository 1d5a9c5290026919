// Messages when ranks leave in order: which receives are hopeless then.
#include <algorithm>
#include <utility>

#include "engine/messages.h"

namespace hier {

bool Messages::say_last() {
  if (std::exchange(said_last_, true)) return false;
  for (Peer& peer : peers_) {
    if (peer.channel && !peer.ended) {
      push(peer, header_of(MessageHeader::Type::last, peer));
    }
  }
  return true;
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
