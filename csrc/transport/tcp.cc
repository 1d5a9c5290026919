// TCP channel over a connected nonblocking socket.
#include "transport/tcp.h"

#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "transport/silence.h"

namespace hier {

namespace {

constexpr size_t kMaxParts = 4;

[[noreturn]] void broken(const char* call, int error) {
  throw ChannelBroken(std::string(call) + ": " + std::system_category().message(error),
                      is_unanswered(error));
}

bool would_block(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

}  // namespace

void TcpChannel::connect(Fd socket) {
  if (!socket) return;
  buffer_ = std::make_unique_for_overwrite<std::byte[]>(buffer_bytes_);
  socket_ = std::move(socket);
  want_ = nullptr;
}

void TcpChannel::give_up(const std::string& reason, bool unanswered, bool closed) {
  if (!socket_) unreachable_ = {reason, unanswered, closed};
}

void TcpChannel::want() {
  if (const auto want = std::exchange(want_, nullptr)) want();
}

void TcpChannel::check_reachable() const {
  if (!unreachable_) return;
  if (unreachable_->closed) throw EndOfStream(unreachable_->reason);
  throw ChannelBroken(unreachable_->reason, unreachable_->unanswered);
}

size_t TcpChannel::try_write(std::span<const Bytes> parts) {
  if (!socket_) {
    check_reachable();
    want();
    return 0;
  }
  std::array<iovec, kMaxParts> vectors;
  size_t used = 0, wanted = 0;
  for (Bytes part : parts.first(std::min(parts.size(), kMaxParts))) {
    if (part.empty()) continue;
    vectors[used++] = {const_cast<std::byte*>(part.data()), part.size()};
    wanted += part.size();
  }
  if (used == 0 || (full_ && !writable())) return 0;
  msghdr message{};
  message.msg_iov = vectors.data();
  message.msg_iovlen = used;
  const ssize_t n = ::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n < 0) {
    if (!would_block(errno)) broken("send", errno);
    full_ = true;
    return 0;
  }
  const auto sent = static_cast<size_t>(n);
  full_ = sent < wanted;
  bytes_sent += sent;
  return sent;
}

// Linux says so once a third of the send buffer is free. To write whatever little has become free
// instead costs a system call, and a small packet, for each acknowledgement.
bool TcpChannel::writable() const {
  pollfd socket{socket_.get(), POLLOUT, 0};
  return ::poll(&socket, 1, 0) > 0;
}

// Linux counts there what has not been acknowledged.
bool TcpChannel::delivered() const {
  if (!socket_) return true;
  int bytes = 0;
  return ::ioctl(fd(), SIOCOUTQ, &bytes) != 0 || bytes == 0;
}

double TcpChannel::seconds_unanswered() const {
  return socket_ ? hier::seconds_unanswered(fd()) : 0;
}

size_t TcpChannel::receive(std::span<std::byte> dst, std::span<std::byte> then) {
  if (!socket_) {
    check_reachable();
    return 0;
  }
  iovec vectors[] = {{dst.data(), dst.size()}, {then.data(), then.size()}};
  msghdr message{};
  message.msg_iov = vectors;
  message.msg_iovlen = 2;
  const ssize_t got = then.empty() ? ::recv(socket_.get(), dst.data(), dst.size(), MSG_DONTWAIT)
                                   : ::recvmsg(socket_.get(), &message, MSG_DONTWAIT);
  if (got > 0) return static_cast<size_t>(got);
  if (got == 0) throw EndOfStream("connection closed by the peer");
  if (!would_block(errno)) broken("recv", errno);
  return 0;
}

void TcpChannel::fill() {
  if (lo_ == hi_) {
    lo_ = hi_ = consumed_ % 8;
  } else if (hi_ == buffer_bytes_) {
    const size_t keep = lo_ % 8;
    std::memmove(buffer_.get() + keep, buffer_.get() + lo_, hi_ - lo_);
    hi_ = keep + hi_ - lo_, lo_ = keep;
  }
  hi_ += receive({buffer_.get() + hi_, buffer_bytes_ - hi_});
}

Bytes TcpChannel::peek(size_t wanted) {
  if (hi_ - lo_ < wanted && (hi_ - lo_ < 64 || lo_ == hi_)) fill();
  return {buffer_.get() + lo_, hi_ - lo_};
}

size_t TcpChannel::try_read(std::span<std::byte> dst) {
  if (dst.empty()) return 0;
  if (lo_ == hi_) {
    if (dst.size() >= kSmallRead) {
      const size_t n = receive(dst);
      consumed_ += n;
      return n;
    }
    fill();
    if (lo_ == hi_) return 0;  // there may be no buffer yet
  }
  const size_t n = std::min(dst.size(), hi_ - lo_);
  std::memcpy(dst.data(), buffer_.get() + lo_, n);
  consume(n);
  return n;
}

size_t TcpChannel::try_read_both(std::span<std::byte> dst, std::span<std::byte> then) {
  if (lo_ < hi_ || dst.size() < kSmallRead) return Channel::try_read_both(dst, then);
  const size_t n = receive(dst, then);
  consumed_ += n;
  return n;
}

}  // namespace hier
