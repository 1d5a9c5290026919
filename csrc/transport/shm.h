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

class ShmChannel final : public Channel {
 public:
  ShmChannel(ShmRingView out, ShmRingView in, Doorbells* bells, int peer_local_rank)
      : out_(out), in_(in), bells_(bells), peer_(peer_local_rank) {}

  size_t try_write(std::span<const Bytes> parts) override;
  size_t try_read(std::span<std::byte> dst) override;
  Bytes peek(size_t wanted) override;
  void consume(size_t n) override;
  int fd() const override { return -1; }
  bool over_network() const override { return false; }

 private:
  ShmRingView out_, in_;
  Doorbells* bells_;  // may be null: then nobody sleeps
  int peer_;
};

}  // namespace hier
