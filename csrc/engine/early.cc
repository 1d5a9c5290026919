// Messages that come before their receive.
#include <cstring>

#include "engine/messages.h"

namespace hier {

using Type = MessageHeader::Type;

// Where the message is small, and the window has room, its payload waits here for a receive.
void Messages::set_aside(Peer& peer, Early& early) {
  const MessageHeader& header = early.header;
  if (header.type == Type::announce) {
    if (header.bytes > kEagerBytes) return;
    if (peer.set_aside + weight(header.bytes) > kEagerWindow) {
      ++peer.without_room;
      return;
    }
    early.fetched = true;
    peer.fetched.emplace(header.id, &early);
    grant(peer, header.id);
  }
  early.payload.resize(header.bytes);
  peer.set_aside += weight(header.bytes);
}

void Messages::take_early(std::list<Early>::iterator early,
                          const std::shared_ptr<Transfer>& transfer) {
  if (!early->claimed) match(early->source, early->header, *transfer);
  Peer& peer = peers_[early->source];
  if (early->header.type == Type::announce && !early->fetched) {
    if (early->header.bytes <= kEagerBytes) --peer.without_room;
    peer.granted.emplace(early->header.id, transfer);
    grant(peer, early->header.id);
  } else if (!early->whole) {
    early->claimed = transfer;
    return;
  } else {
    if (transfer->bytes > 0) std::memcpy(transfer->data, early->payload.data(), transfer->bytes);
    peer.set_aside -= weight(transfer->bytes);
    if (early->header.type == Type::eager) peer.consumed += weight(transfer->bytes);
    finish(transfer);
  }
  const int source = early->source;
  early_.erase(early);
  if (peer.without_room > 0) use_room(source);
}

// Small messages that were announced when the window was full come as soon as it is not: their
// senders wait.
void Messages::use_room(int source) {
  Peer& peer = peers_[source];
  for (Early& early : early_) {
    const bool small = early.header.bytes <= kEagerBytes;
    if (early.source != source || early.header.type != Type::announce || !small || early.fetched)
      continue;
    --peer.without_room;
    set_aside(peer, early);
    if (!early.fetched) return;  // in their order
  }
}

}  // namespace hier
