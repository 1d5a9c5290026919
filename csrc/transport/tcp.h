// TCP channel: one nonblocking socket, eager sends, one buffer for small reads. It may be connected
// from the beginning, or at its first use.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/fd.h"
#include "transport/channel.h"

namespace hier {

class TcpChannel final : public Channel {
 public:
  static constexpr size_t kBufferBytes = 256 << 10;  // stays in the L2 cache while it is reduced

  // Takes a connected, nonblocking stream socket. Small reads go through a buffer.
  explicit TcpChannel(Fd socket, bool checked = false, size_t buffer_bytes = kBufferBytes)
      : checked_(checked), buffer_bytes_(buffer_bytes) {
    connect(std::move(socket));
  }
  // To be connected later: `want` asks for that, from the driving thread, at most once.
  TcpChannel(std::function<void()> want, bool checked)
      : checked_(checked), buffer_bytes_(kBufferBytes), want_(std::move(want)) {}

  void connect(Fd socket);
  // The peer cannot be reached: from here on the stream is broken. Closed: it listens no more.
  void give_up(const std::string& reason, bool unanswered, bool closed);

  size_t try_write(std::span<const Bytes> parts) override;
  size_t try_read(std::span<std::byte> dst) override;
  size_t try_read_both(std::span<std::byte> dst, std::span<std::byte> then) override;
  Bytes peek(size_t wanted) override;
  void consume(size_t n) override { lo_ += n, consumed_ += n; }
  int fd() const override { return socket_.get(); }
  bool connected() const override { return static_cast<bool>(socket_); }
  void want() override;
  bool has_read_ahead() const override { return lo_ < hi_; }
  bool over_network() const override { return true; }
  bool checked() const override { return checked_; }
  bool delivered() const override;
  double seconds_unanswered() const override;
  size_t quantum() const override { return kQuantum; }

 private:
  static constexpr size_t kQuantum = 256 << 10;
  static constexpr size_t kSmallRead = 4 << 10;  // below this, read ahead: header and payload
                                                 // of a small message cost one system call
  size_t receive(std::span<std::byte> dst, std::span<std::byte> then = {});
  void fill();
  bool writable() const;

  void check_reachable() const;

  Fd socket_;
  const bool checked_;
  const size_t buffer_bytes_;
  bool full_ = false;  // it did not take all of the last write
  // Received and not consumed: [lo_, hi_). Untouched pages take no memory: most connections of a
  // large group carry nothing.
  std::unique_ptr<std::byte[]> buffer_;
  size_t lo_ = 0, hi_ = 0;
  uint64_t consumed_ = 0;  // bytes of the stream; lo_ keeps its phase modulo 8
  // While there is no socket:
  std::function<void()> want_;  // null once it was called
  struct Unreachable {
    std::string reason;
    bool unanswered, closed;
  };
  std::optional<Unreachable> unreachable_;
};

}  // namespace hier
