// Shared-memory channel: two single-producer single-consumer byte rings.
#pragma once

#include <atomic>
#include <functional>

#include "base/doorbell.h"
#include "transport/channel.h"

namespace hier {

// The control words of a ring; its bytes follow elsewhere. All-zero memory is an empty ring.
struct ShmRing {
  alignas(64) std::atomic<uint64_t> head;  // bytes consumed; written by the consumer (release)
  alignas(64) std::atomic<uint64_t> tail;  // bytes produced; written by the producer (release)
};

struct ShmRingView {
  ShmRing* ring;
  std::byte* data;
  size_t capacity;  // a multiple of 8
};

// Makes bytes of a ring exist, before they are first written; may throw.
using AllocateBytes = std::function<void(const std::byte* begin, size_t bytes)>;

class ShmChannel final : public Channel {
 public:
  // Without `allocate` all bytes of `out` are there.
  ShmChannel(ShmRingView out, ShmRingView in, Doorbells* bells, int peer_local_rank,
             AllocateBytes allocate = {})
      : out_(out),
        in_(in),
        bells_(bells),
        peer_(peer_local_rank),
        allocate_(std::move(allocate)),
        allocated_(allocate_ ? 0 : out.capacity) {}

  size_t try_write(std::span<const Bytes> parts) override;
  size_t try_read(std::span<std::byte> dst) override;
  Bytes peek(size_t wanted) override;
  void consume(size_t n) override;
  int fd() const override { return -1; }
  bool over_network() const override { return false; }

 private:
  void allocate_up_to(size_t end);

  ShmRingView out_, in_;
  Doorbells* bells_;  // may be null: then nobody sleeps
  int peer_;
  AllocateBytes allocate_;
  size_t allocated_;  // bytes of `out`, from its beginning, that are there
};

}  // namespace hier
