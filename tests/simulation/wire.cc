// Bytes on their way.
#include "wire.h"

#include <algorithm>
#include <cstring>

#include "memory.h"

namespace hier::simulation {

size_t Wire::write(std::span<const Bytes> parts) {
  const Unrationed kernel;
  const bool refused = abandoned_at_ && *abandoned_at_ <= timing_.now;
  if (reset_ || refused) throw ChannelBroken("send: connection reset");
  check_answers();
  while (!acknowledged_.empty() && acknowledged_.front().arrives <= timing_.now) {
    outstanding_ -= acknowledged_.front().bytes;
    acknowledged_.pop_front();
  }
  size_t room = std::min(options_.capacity - outstanding_, options_.most);
  // A kernel takes a control frame whole, where it has room for it.
  const bool any_portion = options_.carries != Carries::control && random_.one_in(4);
  if (room > 1 && any_portion) room = random_.between(1, room);
  const size_t before = data_.size();
  size_t wanted = 0;
  for (const Bytes part : parts) {
    wanted += part.size();
    const size_t n = std::min(part.size(), room);
    data_.insert(data_.end(), part.begin(), part.begin() + static_cast<std::ptrdiff_t>(n));
    room -= n;
  }
  const size_t written = data_.size() - before;
  outstanding_ += written;
  full_ = written < wanted;
  // What a kernel has room for, poll reports at once.
  if (full_ && outstanding_ < options_.capacity) {
    timing_.wake(timing_.now, writer_, options_.carries);
  }
  if (full_ && !acknowledged_.empty()) {
    timing_.wake(acknowledged_.front().arrives, writer_, options_.carries);
  }
  if (written == 0) return 0;
  if (std::exchange(flip_, false)) {
    data_[before + random_.between(0, written - 1)] ^= std::byte{1} << random_.between(0, 7);
  }
  if (unanswered_from_ && !unanswered_since_) unanswered_since_ = timing_.now;
  if (dropping_) {
    if (!dropped_since_) dropped_since_ = timing_.now;
    return written;
  }
  auto arrives = timing_.now + options_.delay;
  if (!under_way_.empty()) arrives = std::max(arrives, under_way_.back().arrives);
  under_way_.push_back({arrives, written});
  timing_.wake(arrives, reader_, options_.carries);
  return written;
}

Bytes Wire::arrived() {
  while (!under_way_.empty() && under_way_.front().arrives <= timing_.now) {
    arrived_ += under_way_.front().bytes;
    under_way_.pop_front();
  }
  return {data_.data() + read_, arrived_ - read_};
}

void Wire::consume(size_t n) {
  const Unrationed kernel;
  read_ += n;
  if (n == 0) return;
  acknowledged_.push_back({timing_.now + options_.delay, n});
  if (full_) timing_.wake(timing_.now + options_.delay, writer_, options_.carries);
  constexpr size_t kCompact = 1 << 14;
  if (read_ < kCompact) return;
  const size_t gone = read_ / 8 * 8;
  data_.erase(data_.begin(), data_.begin() + static_cast<std::ptrdiff_t>(gone));
  read_ -= gone, arrived_ -= gone;
}

size_t Wire::room(size_t wanted) {
  const Unrationed kernel;
  size_t most = std::min(wanted, options_.most);
  if (most > 1 && random_.one_in(4)) most = random_.between(1, most);
  if (most < arrived_ - read_) timing_.wake(timing_.now, reader_, options_.carries);
  return most;
}

void Wire::check_open(size_t wanted) {
  const Unrationed kernel;
  if (reset_) throw ChannelBroken("recv: connection reset");
  if (dropping_ && timing_.now - *dropping_ >= options_.dead_after) {
    throw ChannelBroken("recv: no answer", /*no_answer=*/true);
  }
  const bool over = ended_at_ && *ended_at_ <= timing_.now && under_way_.empty() && !dropped_since_;
  const size_t have = arrived_ - read_;
  if (over && have < std::clamp<size_t>(wanted, 1, 64)) {
    throw EndOfStream("connection closed by the peer");
  }
}

void Wire::check_answers() const {
  if (dropping_ && dropped_since_ && timing_.now - *dropped_since_ >= 4 * options_.dead_after) {
    throw ChannelBroken("send: no answer", /*no_answer=*/true);
  }
}

double Wire::seconds_unanswered() const {
  const auto& since = dropped_since_ ? dropped_since_ : unanswered_since_;
  return since ? Seconds(timing_.now - *since).count() : 0;
}

void Wire::end() {
  if (ended_at_) return;
  if (dropping_) return;  // nobody hears of it
  ended_at_ = timing_.now + options_.delay;
  if (!under_way_.empty()) ended_at_ = std::max(*ended_at_, under_way_.back().arrives);
  timing_.wake(*ended_at_, reader_, options_.carries);
}

void Wire::abandon() {
  if (abandoned_at_ || dropping_ || unanswered_from_) return;
  abandoned_at_ = timing_.now + options_.delay;
  timing_.wake(*abandoned_at_, writer_, options_.carries);
}

void Wire::reset() {
  reset_ = true;
  timing_.wake(timing_.now, reader_, options_.carries);
  timing_.wake(timing_.now, writer_, options_.carries);
}

void Wire::start_drop() {
  if (dropping_ || ended_at_) return;
  dropping_ = timing_.now;
  // What is on its way arrives no more.
  size_t lost = 0;
  for (const Portion& portion : under_way_) lost += portion.bytes;
  if (lost > 0) dropped_since_ = timing_.now;
  under_way_.clear();
  timing_.wake(timing_.now + options_.dead_after, reader_, options_.carries);
}

void End::check_reachable() const {
  const Unrationed kernel;
  if (state == State::refused) throw EndOfStream("no connection: refused");
  if (state == State::unanswered) throw ChannelBroken("no connection: no answer", true);
}

size_t SimulatedChannel::try_read(std::span<std::byte> dst) {
  if (dst.empty()) return 0;
  if (!connected()) {
    end_.check_reachable();
    return 0;
  }
  const Bytes ready = in_.arrived();
  if (ready.empty()) {
    in_.check_open(1);
    return 0;
  }
  const size_t n = std::min(ready.size(), in_.room(dst.size()));
  std::memcpy(dst.data(), ready.data(), n);
  in_.consume(n);
  return n;
}

Bytes SimulatedChannel::peek(size_t wanted) {
  if (!connected()) {
    end_.check_reachable();
    return {};
  }
  const Bytes ready = in_.arrived();
  if (ready.size() < wanted && ready.size() < 64) in_.check_open(wanted);
  return ready;
}

}  // namespace hier::simulation
