// A channel is an ordered, reliable byte stream to and from one peer. It never blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include "base/error.h"

namespace hier {

using Bytes = std::span<const std::byte>;

// The stream broke: what the channel knows. The engine adds who and where.
struct ChannelBroken : std::runtime_error {
  explicit ChannelBroken(const std::string& what, bool no_answer = false)
      : std::runtime_error(what), unanswered(no_answer) {}
  bool unanswered;  // the other end's host does not answer
};

// The peer has closed it, behind all that it had to say; or had closed before there was a stream.
struct EndOfStream : ChannelBroken {
  using ChannelBroken::ChannelBroken;
};

// The stream to a peer is broken, and something needs it: what the engine knows. The peer's control
// link knows what became of the peer itself.
struct BrokenStream : PeerError {
  BrokenStream(int peer, const std::string& what, bool no_answer = false)
      : PeerError(peer, what), unanswered(no_answer) {}
  bool unanswered;  // the peer's host does not answer
};

class Channel {
 public:
  virtual ~Channel() = default;

  // Takes a prefix of the concatenated parts; returns its length, 0 when full.
  virtual size_t try_write(std::span<const Bytes> parts) = 0;
  // Fills a prefix of dst; returns its length, 0 when nothing has arrived.
  virtual size_t try_read(std::span<std::byte> dst) = 0;
  // Fills a prefix of dst, and `then` once dst is full.
  virtual size_t try_read_both(std::span<std::byte> dst, std::span<std::byte> then) {
    const size_t n = try_read(dst);
    return n < dst.size() ? n : n + try_read(then);
  }
  // Received bytes in place, fewer than `wanted` (at most 64) only if no more have arrived. Valid
  // until the next call. They start at a multiple of 8 in memory whenever a multiple of 8 was
  // consumed before.
  virtual Bytes peek(size_t wanted) = 0;
  virtual void consume(size_t n) = 0;

  // What to poll while blocked on this channel; -1 if the node's doorbell tells.
  virtual int fd() const = 0;
  // Whether there is a stream yet; some are made at their first use. What is not connected takes
  // nothing, and nothing arrives.
  virtual bool connected() const { return true; }
  // Asks for the stream, if nobody has. To write asks too.
  virtual void want() {}
  // Something has been read from there already, so that poll does not tell of it.
  virtual bool has_read_ahead() const { return false; }
  virtual bool over_network() const = 0;
  // Each header, step and message is followed by its checksum; at both ends or at none.
  virtual bool checked() const { return false; }
  // The other host has all that was written. To close a channel before may destroy the rest: a host
  // answers what comes for a closed connection with a reset.
  virtual bool delivered() const { return true; }
  // Seconds since the other host has answered, if it should have by now; see silence.h.
  virtual double seconds_unanswered() const { return 0; }
  // Most bytes to move before other queues have their turn: a greedy one starves them (1.18x the
  // time at 4 MiB), but a call must be worth its cost.
  virtual size_t quantum() const { return 64 << 10; }
  uint64_t bytes_sent = 0;  // owned by the thread that drives the channel's group
};

}  // namespace hier
