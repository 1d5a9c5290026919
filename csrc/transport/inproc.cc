// In-process channel with faults.
#include "transport/inproc.h"

#include <algorithm>

namespace hier {

std::pair<std::unique_ptr<InprocChannel>, std::unique_ptr<InprocChannel>> InprocChannel::pair(
    InprocFaults faults) {
  auto there = std::make_shared<Pipe>(), back = std::make_shared<Pipe>();
  return {std::unique_ptr<InprocChannel>(new InprocChannel(there, back, faults)),
          std::unique_ptr<InprocChannel>(new InprocChannel(back, there, faults))};
}

InprocChannel::~InprocChannel() {
  for (Pipe* pipe : {out_.get(), in_.get()}) {
    const std::lock_guard lock(pipe->mutex);
    pipe->closed = true;
  }
}

void InprocChannel::Pipe::settle() {
  const auto now = Clock::now();
  while (!arrivals.empty() && arrivals.front().first <= now) {
    readable += arrivals.front().second;
    arrivals.pop_front();
  }
}

size_t InprocChannel::try_write(std::span<const Bytes> parts) {
  const std::lock_guard lock(out_->mutex);
  if (out_->closed || out_->carried >= faults_.cut_after) throw ChannelBroken("send: channel cut");
  size_t room = std::min({faults_.capacity - std::min(faults_.capacity, out_->bytes.size()),
                          faults_.max_transfer, faults_.cut_after - out_->carried});
  size_t written = 0;
  for (Bytes part : parts) {
    const size_t n = std::min(part.size(), room);
    out_->bytes.insert(out_->bytes.end(), part.begin(), part.begin() + static_cast<long>(n));
    room -= n, written += n;
    if (n < part.size()) break;
  }
  if (written > 0) out_->arrivals.emplace_back(after(faults_.delay_seconds), written);
  out_->carried += written, bytes_sent += written;
  return written;
}

Bytes InprocChannel::peek(size_t wanted) {
  const std::lock_guard lock(in_->mutex);
  in_->settle();
  const bool ended = in_->closed || in_->carried >= faults_.cut_after;
  if (ended && in_->arrivals.empty() && in_->readable < std::clamp(wanted, size_t{1}, size_t{8})) {
    throw ChannelBroken("connection closed by the peer");
  }
  // Never less than one element where it has arrived: peek promises progress in whole elements.
  const size_t most = std::max(faults_.max_transfer, size_t{8});
  const size_t n = std::min({in_->readable, std::max(wanted, size_t{64}), most});
  seen_.assign(in_->bytes.begin(), in_->bytes.begin() + static_cast<long>(n));
  return seen_;
}

void InprocChannel::consume(size_t n) {
  const std::lock_guard lock(in_->mutex);
  in_->bytes.erase(in_->bytes.begin(), in_->bytes.begin() + static_cast<long>(n));
  in_->readable -= n;
}

size_t InprocChannel::try_read(std::span<std::byte> dst) {
  if (dst.empty() || peek(1).empty()) return 0;
  size_t n = 0;
  {
    const std::lock_guard lock(in_->mutex);
    n = std::min({in_->readable, dst.size(), faults_.max_transfer});
    std::copy_n(in_->bytes.begin(), n, dst.begin());
  }
  consume(n);
  return n;
}

}  // namespace hier
