// Messages that come before their receive.
#include <cstring>

#include "engine/messages.h"

namespace hier {

using Type = MessageHeader::Type;

// Where the message is small, and the window has room, its payload waits here for a receive.
void Messages::set_aside(Peer& peer, Unexpected& unexpected) {
  const MessageHeader& header = unexpected.header;
  if (header.type == Type::announce) {
    if (header.bytes > kEagerBytes) return;
    if (peer.set_aside + weight(header.bytes) > kEagerWindow) {
      ++peer.without_room;
      return;
    }
    unexpected.fetched = true;
    peer.fetched.emplace(header.id, &unexpected);
    grant(peer, header.id);
  }
  unexpected.payload.resize(header.bytes);
  peer.set_aside += weight(header.bytes);
}

void Messages::take_unexpected(std::list<Unexpected>::iterator unexpected,
                               const std::shared_ptr<Transfer>& transfer) {
  if (!unexpected->claimed) match(unexpected->source, unexpected->header, *transfer);
  Peer& peer = peers_[unexpected->source];
  if (unexpected->header.type == Type::announce && !unexpected->fetched) {
    if (unexpected->header.bytes <= kEagerBytes) --peer.without_room;
    peer.granted.emplace(unexpected->header.id, transfer);
    grant(peer, unexpected->header.id);
  } else if (!unexpected->whole) {
    unexpected->claimed = transfer;
    return;
  } else {
    if (transfer->bytes > 0)
      std::memcpy(transfer->data, unexpected->payload.data(), transfer->bytes);
    peer.set_aside -= weight(transfer->bytes);
    if (unexpected->header.type == Type::eager) peer.consumed += weight(transfer->bytes);
    finish(transfer);
  }
  const int source = unexpected->source;
  unexpected_.erase(unexpected);
  if (peer.without_room > 0) use_room(source);
}

// Small messages that were announced when the window was full come as soon as it is not: their
// senders wait.
void Messages::use_room(int source) {
  Peer& peer = peers_[source];
  for (Unexpected& unexpected : unexpected_) {
    const bool small = unexpected.header.bytes <= kEagerBytes;
    if (unexpected.source != source || unexpected.header.type != Type::announce || !small ||
        unexpected.fetched)
      continue;
    --peer.without_room;
    set_aside(peer, unexpected);
    if (!unexpected.fetched) return;  // in their order
  }
}

}  // namespace hier
