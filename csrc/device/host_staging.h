// The device stage: how a collective on device memory passes through the host. Pieces of the buffer
// are copied to pinned memory, worked on there by the engine, and copied back, each on its own:
//
//   stream `in`:   after the caller's work . copy piece k to the host . arrived = k + 1
//   engine:        once arrived > k: local stage, program, ... . done = k + 1
//   stream `out`:  wait until done > k . copy piece k to the device . finished
//
// All stream operations are enqueued when the call is made; no thread waits for a stream, and no
// stream for a thread but by these two flags. When the collective fails, abandon() lets the streams
// go on: what was not reduced is NaN then, or what it was.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "device/local_stage.h"
#include "device/runtime.h"

namespace hier {

// Where a call on device memory comes from and where its streams are. The two streams are the
// group's alone while it has calls in flight; what a caller enqueues on `out` behind a call sees
// its result.
struct DevicePlace {
  DeviceRuntime* runtime = nullptr;
  int device = 0;
  DeviceRuntime::Stream caller = nullptr;  // the call comes after what is enqueued here
  DeviceRuntime::Stream in = nullptr, out = nullptr;
};

// A part of a device buffer and its place in the stage's host memory.
struct StagedCopy {
  std::byte* device;
  std::byte* host;
  size_t bytes;
};

// Pinned memory that is used again once no stream needs it.
class PinnedPool {
 public:
  // The flags are on lines of their own, in front of the bytes.
  struct Block {
    struct Flags {
      alignas(64) DeviceRuntime::Flag arrived;
      alignas(64) DeviceRuntime::Flag done;
      alignas(64) DeviceRuntime::Flag ended;  // the result is in device memory
    };
    DeviceRuntime* runtime;
    int device;
    std::byte* memory;
    size_t bytes;
    DeviceRuntime::Event finished;  // of its last use

    Flags& flags() const { return *reinterpret_cast<Flags*>(memory); }
    std::byte* data() const { return memory + sizeof(Flags); }
  };

  PinnedPool() = default;
  PinnedPool(const PinnedPool&) = delete;
  PinnedPool& operator=(const PinnedPool&) = delete;
  ~PinnedPool();

  Block take(DeviceRuntime* runtime, int device, size_t bytes);
  void give_back(const Block& block);

 private:
  std::mutex mutex_;  // guards blocks_
  std::vector<Block> blocks_;
};

class HostStaging {
 public:
  HostStaging(std::shared_ptr<PinnedPool> pool, DevicePlace place, size_t bytes);
  HostStaging(const HostStaging&) = delete;
  HostStaging& operator=(const HostStaging&) = delete;
  ~HostStaging();

  std::byte* host() const { return block_.data(); }
  // Enqueuing, by the caller's thread: begin, then fetch and put back all pieces in order, one or
  // several at once, then end. Other work of the same pieces may be enqueued on the streams between
  // these.
  const DevicePlace& place() const { return place_; }
  void begin(bool behind_results);  // true: what comes in has been put back by earlier calls
  void fetch(const std::vector<StagedCopy>& parts, uint32_t num_pieces = 1);  // on `in`
  void fetched_all();  // no fetch comes after it
  // On `out`, once the engine is done with these pieces.
  void put_back(const std::vector<StagedCopy>& parts, uint32_t num_pieces = 1);
  void pass();  // likewise, of a piece that has no such part
  void end();

  // What the streams do in between is of this stage: once it is abandoned, by whatever rank,
  // nothing arrives or ends any more. (The flags say so still, for the streams were let go.)
  void depends_on(std::shared_ptr<const DeviceLocalStage> local) { local_ = std::move(local); }

  // By the thread that drives the collective.
  bool arrived(uint64_t piece) const { return has_arrived(piece) && !let_go(); }
  void complete(uint64_t piece) {
    block_.flags().done.store(static_cast<uint32_t>(piece + 1), std::memory_order_release);
  }
  // Lets the streams go on without what is not complete; none of the driving thread's any more.
  void abandon() noexcept;

  bool ended() const {
    return block_.flags().ended.load(std::memory_order_acquire) != 0 && !let_go();
  }

  // By any thread: whether the result is in device memory; makes the caller's stream come after
  // that.
  bool finished() const { return place_.runtime->finished(block_.finished); }
  void join() const;

 private:
  std::shared_ptr<PinnedPool> pool_;
  DevicePlace place_;
  PinnedPool::Block block_;
  std::shared_ptr<const DeviceLocalStage> local_;  // null: the streams copy, and nothing else
  struct PutBack {
    uint32_t end;  // the pieces that have been put back with these parts
    std::vector<StagedCopy> parts;
  };

  bool has_arrived(uint64_t piece) const {
    return block_.flags().arrived.load(std::memory_order_acquire) > piece;
  }
  // Behind a flag, which a stream sets after it has been let go.
  bool let_go() const { return local_ && local_->abandoned(); }

  uint32_t num_put_back() const { return out_.empty() ? 0 : out_.back().end; }

  uint32_t num_fetched_ = 0;
  std::vector<PutBack> out_;  // abandon() spoils it
};

}  // namespace hier
