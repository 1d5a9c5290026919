// Control links over nonblocking stream sockets.
#include "transport/control.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <span>

#include "base/crc32c.h"
#include "transport/silence.h"

namespace hier {

namespace {

// The most bytes of `text`, up to `most`, that end at a whole character of UTF-8.
size_t whole_characters(std::string_view text, size_t most) {
  if (text.size() <= most) return text.size();
  constexpr size_t kLongest = 4;  // bytes of a character
  for (size_t end = most; end + kLongest > most; --end) {
    const auto next = static_cast<unsigned char>(text[end]);
    if ((next & 0xc0) != 0x80) return end;  // a character starts here
  }
  return most;  // this is no UTF-8
}

}  // namespace

void ControlFrame::set_text(std::string_view message) {
  text_bytes = static_cast<uint16_t>(whole_characters(message, text.size()));
  std::memcpy(text.data(), message.data(), text_bytes);
}

std::string ControlFrame::message() const {
  return {text.data(), std::min<size_t>(text_bytes, text.size())};
}

uint32_t ControlFrame::sum() const {
  ControlFrame frame = *this;
  frame.checksum = 0;
  return crc32c(0, std::as_bytes(std::span(&frame, 1)));
}

ControlLinks::ControlLinks(std::vector<Fd> sockets) : links_(sockets.size()) {
  for (size_t i = 0; i < sockets.size(); ++i) links_[i].socket = std::move(sockets[i]);
}

void ControlLinks::broadcast(ControlFrame frame) noexcept {
  frame.checksum = frame.sum();
  const std::lock_guard lock(send_mutex_);
  for (Link& link : links_) {
    if (!link.socket || !link.writable) continue;
    const ssize_t n = ::send(link.socket.get(), &frame, sizeof frame, MSG_DONTWAIT | MSG_NOSIGNAL);
    const bool partial = n > 0 && static_cast<size_t>(n) < sizeof frame;
    if (partial || (n < 0 && errno != EAGAIN && errno != EINTR)) link.writable = false;
  }
}

void ControlLinks::receive(const std::function<void(int rank, const ControlFrame&)>& handle) {
  for (size_t i = 0; i < links_.size(); ++i) {
    if (links_[i].socket && links_[i].presence == Presence::present) {
      receive_from(static_cast<int>(i), links_[i], handle);
    }
  }
}

void ControlLinks::receive_from(int rank, Link& link,
                                const std::function<void(int rank, const ControlFrame&)>& handle) {
  for (;;) {
    const ssize_t n = ::recv(link.socket.get(), link.buffer.data() + link.filled,
                             link.buffer.size() - link.filled, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) return note(rank, n < 0 && is_unanswered(errno) ? Presence::lost : Presence::died);
    link.filled += static_cast<size_t>(n);
    if (link.filled < link.buffer.size()) continue;
    link.filled = 0;
    ControlFrame frame;
    std::memcpy(&frame, link.buffer.data(), sizeof frame);
    // Garbage: nothing more from this link can be trusted.
    if (frame.magic != ControlFrame::kMagic || frame.checksum != frame.sum()) {
      return note(rank, Presence::died);
    }
    if (frame.type == ControlFrame::Type::goodbye) return note(rank, Presence::left);
    handle(rank, frame);
  }
}

void ControlLinks::note(int rank, Presence presence) {
  links_[rank].presence = presence;
  anybody_gone_ = true;
  if (presence == Presence::lost) lost_ = rank;
}

void ControlLinks::check_silence(double seconds) {
  for (size_t i = 0; i < links_.size(); ++i) {
    const Link& link = links_[i];
    if (!link.socket || link.presence != Presence::present) continue;
    if (seconds_unanswered(link.socket.get()) >= seconds) {
      note(static_cast<int>(i), Presence::lost);
    }
  }
}

void ControlLinks::poll_fds(std::vector<pollfd>& fds) const {
  for (const Link& link : links_) {
    if (link.socket && link.presence == Presence::present) {
      fds.push_back({link.socket.get(), POLLIN, 0});
    }
  }
}

void ControlLinks::close() {
  const std::lock_guard lock(send_mutex_);
  for (Link& link : links_) link.socket.close();
}

}  // namespace hier
