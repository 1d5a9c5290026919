// In-process channel for tests: a pair of queues with injected delay, short reads and a cut.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.h"
#include "transport/channel.h"

namespace hier {

struct InprocFaults {
  double delay_seconds = 0;        // each write becomes readable this much later
  size_t max_transfer = SIZE_MAX;  // a call moves at most this many bytes
  size_t cut_after = SIZE_MAX;     // the stream breaks after this many bytes, for both ends
  size_t capacity = 1 << 20;       // bytes in flight
};

class InprocChannel final : public Channel {
 public:
  static std::pair<std::unique_ptr<InprocChannel>, std::unique_ptr<InprocChannel>> pair(
      InprocFaults faults);
  ~InprocChannel() override;

  size_t try_write(std::span<const Bytes> parts) override;
  size_t try_read(std::span<std::byte> dst) override;
  Bytes peek(size_t wanted) override;
  void consume(size_t n) override;
  int fd() const override { return -1; }
  bool over_network() const override { return false; }

 private:
  struct Pipe {  // every member is guarded by mutex
    std::mutex mutex;
    std::deque<std::byte> bytes;
    std::deque<std::pair<Clock::time_point, size_t>> arrivals;  // when the next bytes may be read
    size_t readable = 0, carried = 0;
    bool closed = false;
    void settle();
  };

  InprocChannel(std::shared_ptr<Pipe> out, std::shared_ptr<Pipe> in, InprocFaults faults)
      : out_(std::move(out)), in_(std::move(in)), faults_(faults) {}

  std::shared_ptr<Pipe> out_, in_;
  InprocFaults faults_;
  std::vector<std::byte> seen_;  // what the last peek returned; 8-byte aligned by the allocator
};

}  // namespace hier
