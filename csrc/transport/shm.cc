// Shared-memory channel: byte rings with in-place reads.
#include "transport/shm.h"

#include <algorithm>
#include <cstring>

namespace hier {

namespace {
constexpr size_t kAllocateStep = 64 << 10;  // small calls need little of a ring
}  // namespace

// A ring is filled from its beginning, so what is there is a prefix of it.
void ShmChannel::allocate_up_to(size_t end) {
  const size_t target =
      std::min((end + kAllocateStep - 1) / kAllocateStep * kAllocateStep, out_.capacity);
  allocate_(out_.data + allocated_, target - allocated_);
  allocated_ = target;
}

size_t ShmChannel::try_write(std::span<const Bytes> parts) {
  const uint64_t tail = out_.ring->tail.load(std::memory_order_relaxed);
  // Acquire pairs with consume(): the bytes before head are free to be overwritten.
  const size_t used = tail - out_.ring->head.load(std::memory_order_acquire);
  size_t room = out_.capacity - used, written = 0;
  for (Bytes part : parts) {
    while (!part.empty() && room > 0) {
      const size_t at = (tail + written) % out_.capacity;
      const size_t n = std::min({part.size(), room, out_.capacity - at});
      if (at + n > allocated_) allocate_up_to(at + n);
      std::memcpy(out_.data + at, part.data(), n);
      part = part.subspan(n);
      room -= n, written += n;
    }
    if (!part.empty()) break;
  }
  if (written == 0) return 0;
  out_.ring->tail.store(tail + written, std::memory_order_release);
  if (bells_) bells_->ring(peer_);
  bytes_sent += written;
  return written;
}

Bytes ShmChannel::peek(size_t) {
  const uint64_t head = in_.ring->head.load(std::memory_order_relaxed);
  // Acquire pairs with try_write(): the bytes before tail are there.
  const size_t filled = in_.ring->tail.load(std::memory_order_acquire) - head;
  const size_t at = head % in_.capacity;
  return {in_.data + at, std::min(filled, in_.capacity - at)};
}

void ShmChannel::consume(size_t n) {
  if (n == 0) return;
  const uint64_t head = in_.ring->head.load(std::memory_order_relaxed);
  in_.ring->head.store(head + n, std::memory_order_release);
  if (bells_) bells_->ring(peer_);
}

size_t ShmChannel::try_read(std::span<std::byte> dst) {
  size_t done = 0;
  while (done < dst.size()) {  // twice at most: the ring may wrap
    const Bytes ready = peek(dst.size() - done);
    const size_t n = std::min(ready.size(), dst.size() - done);
    if (n == 0) break;
    std::memcpy(dst.data() + done, ready.data(), n);
    consume(n);
    done += n;
  }
  return done;
}

}  // namespace hier
