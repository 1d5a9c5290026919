// The collectives in flight on one rank: several lanes, each with its channels, and runs that take
// turns. Owned by the thread that drives the group.
#pragma once

#include <poll.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "group/links.h"
#include "group/run.h"
#include "local/stage.h"

namespace hier {

struct Traffic {
  uint64_t shared_memory_bytes = 0;  // moved between this rank and others of its node
  uint64_t network_bytes = 0;        // sent to other nodes
};

// From any thread.
class TrafficCounters {
 public:
  void add_shared(uint64_t bytes) { shared_.fetch_add(bytes, std::memory_order_relaxed); }
  void take(Channels& channels);  // what they have sent since it was taken last
  Traffic read() const {
    return {shared_.load(std::memory_order_relaxed), network_.load(std::memory_order_relaxed)};
  }

 private:
  std::atomic<uint64_t> shared_{0}, network_{0};
};

struct Lane {
  Channels channels;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<LocalStage> local;  // null where the rank is alone on its node
  std::deque<std::unique_ptr<Run>> runs;
  uint64_t local_runs = 0;  // runs of this lane that had a local stage
};

class Lanes {
 public:
  // channels[i] are lane i's. `arena` is null for a rank that is alone on its node.
  Lanes(std::vector<Channels> channels, const std::shared_ptr<Arena>& arena, int local_rank,
        Doorbells* bells);

  // A place in the queue where the run of that number belongs. Throws std::bad_alloc.
  std::unique_ptr<Run>& make_room(uint32_t run);
  // Moves what can move; true if anything did. Calls `ended` for each run that has. Throws what
  // executions and engines throw.
  bool turn(TrafficCounters& traffic, const std::function<void(Run&)>& ended);
  bool idle() const;
  // The next run has still to come from the device, or a result has still to get there.
  bool waits_for_device() const;
  void blocked_on(std::vector<pollfd>& fds) const;  // what to poll when turn() is false
  size_t num_runs() const;
  // After an error; neighbours are told. Throws std::bad_alloc, and has taken nothing then.
  std::vector<std::unique_ptr<Run>> take_all();
  void close();

  const std::vector<Lane>& lanes() const { return lanes_; }
  // Runs that are over for the host, and not yet in device memory.
  const std::vector<std::unique_ptr<Run>>& trailing() const { return trailing_; }
  void for_each_run(const std::function<void(Run&)>& visit) const;
  // What each lane is busy with, and what is trailing.
  void for_each_current(const std::function<void(Run&)>& visit) const;
  // The last headers of this rank, to be compared with those of ranks that are behind it.
  const std::array<RunHeader, 64>& history() const { return history_; }

 private:
  bool advance(Lane& lane, TrafficCounters& traffic, const std::function<void(Run&)>& ended);
  void begin(Lane& lane, Run& run);
  void finish(Run& run, const std::function<void(Run&)>& ended);

  std::vector<Lane> lanes_;
  std::vector<std::unique_ptr<Run>> trailing_;
  std::array<RunHeader, 64> history_;
};

}  // namespace hier
