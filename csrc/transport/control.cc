// Control links: frames over channels.
#include "transport/control.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "base/crc32c.h"

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

constexpr size_t kGoneRanks = ControlFrame::kBits / 4;  // that a frame tells of

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

ControlLinks::ControlLinks(int rank, std::vector<std::unique_ptr<Channel>> channels)
    : rank_(rank),
      sparse_(std::ranges::count_if(channels, [](const auto& channel) { return !channel; }) > 1),
      links_(channels.size()) {
  for (size_t i = 0; i < channels.size(); ++i) links_[i].channel = std::move(channels[i]);
}

void ControlLinks::broadcast(ControlFrame frame) noexcept {
  frame.checksum = frame.sum();
  const Bytes bytes = std::as_bytes(std::span(&frame, 1));
  const std::lock_guard lock(send_mutex_);
  for (Link& link : links_) {
    if (!link.channel || !link.writable) continue;
    try {
      const size_t n = link.channel->try_write({&bytes, 1});
      if (n > 0 && n < bytes.size()) link.writable = false;
    } catch (...) {  // it has ended; or there is no memory to say so
      link.writable = false;
    }
  }
}

void ControlLinks::receive(const std::function<void(int rank, const ControlFrame&)>& handle) {
  for (size_t i = 0; i < links_.size(); ++i) {
    if (links_[i].open()) receive_from(static_cast<int>(i), links_[i], handle);
  }
}

void ControlLinks::receive_from(int rank, Link& link,
                                const std::function<void(int rank, const ControlFrame&)>& handle) {
  for (;;) {
    try {
      const size_t n = link.channel->try_read(std::span(link.buffer).subspan(link.filled));
      if (n == 0) return;
      link.filled += n;
    } catch (const ChannelBroken& why) {
      return note(rank, why.unanswered ? Presence::lost : Presence::died);
    }
    if (link.filled < link.buffer.size()) continue;
    link.filled = 0;
    ControlFrame frame;
    std::memcpy(&frame, link.buffer.data(), sizeof frame);
    // Garbage: nothing more from this link can be trusted.
    if (frame.magic != ControlFrame::kMagic || frame.checksum != frame.sum()) {
      return note(rank, Presence::died);
    }
    if (frame.type == ControlFrame::Type::goodbye) {
      return note(rank, frame.culprit < 0 ? Presence::left : Presence::failed);
    }
    if (frame.type == ControlFrame::Type::gone) {
      hear_gone(frame);
    } else {
      handle(rank, frame);
    }
  }
}

void ControlLinks::note(int rank, Presence presence) {
  links_[rank].presence = presence;
  anybody_gone_ = news_ = true;
  if (presence == Presence::lost) lost_ = rank;
}

void ControlLinks::tell_gone() noexcept {
  if (!std::exchange(news_, false) || !sparse_) return;
  for (size_t first = 0; first < links_.size(); first += kGoneRanks) {
    ControlFrame frame;
    frame.type = ControlFrame::Type::gone;
    frame.culprit = static_cast<int32_t>(first);
    bool any = false;
    for (size_t i = 0; i < std::min(kGoneRanks, links_.size() - first); ++i) {
      const Presence presence = links_[first + i].presence;
      if (presence == Presence::present) continue;
      any = true;
      frame.set_bit((static_cast<size_t>(presence) - 1) * kGoneRanks + i);
    }
    if (any) broadcast(frame);
  }
}

// Of a rank that this one is linked with, the link itself tells, behind all that came before.
void ControlLinks::hear_gone(const ControlFrame& frame) {
  for (size_t i = 0; i < kGoneRanks; ++i) {
    const size_t rank = static_cast<size_t>(std::max(frame.culprit, 0)) + i;
    if (rank >= links_.size()) return;
    if (static_cast<int>(rank) == rank_ || links_[rank].channel) continue;
    if (links_[rank].presence != Presence::present) continue;
    for (const Presence presence :
         {Presence::left, Presence::failed, Presence::died, Presence::lost}) {
      if (frame.bit((static_cast<size_t>(presence) - 1) * kGoneRanks + i)) {
        note(static_cast<int>(rank), presence);
      }
    }
  }
}

void ControlLinks::check_silence(double seconds) {
  for (size_t i = 0; i < links_.size(); ++i) {
    const Link& link = links_[i];
    if (!link.open()) continue;
    if (link.channel->seconds_unanswered() >= seconds) {
      note(static_cast<int>(i), Presence::lost);
    }
  }
}

bool ControlLinks::any_open() const { return std::ranges::any_of(links_, &Link::open); }

void ControlLinks::poll_fds(std::vector<pollfd>& fds) const {
  for (const Link& link : links_) {
    if (link.open() && link.channel->fd() >= 0) fds.push_back({link.channel->fd(), POLLIN, 0});
  }
}

void ControlLinks::close() {
  const std::lock_guard lock(send_mutex_);
  for (Link& link : links_) link.channel.reset();
}

}  // namespace hier
