// A group of ranks: what users hold. One thread at a time drives all that is in flight: a blocking
// caller, if nobody drives when it comes, else the group's one worker. Collectives share lanes,
// several at once; messages between two ranks have connections of their own.
//
// The first error wins: it poisons the group, reaches every rank over the control links, and ends
// everything in flight. No exception leaves a thread.
//
// A forked child is no member: every call that locks, drives or waits throws UsageError there,
// close does nothing, and the object is left as it is (make_group).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/fork.h"
#include "device/local_stage.h"
#include "device/shared_memory.h"
#include "device/stage.h"
#include "engine/engine.h"
#include "engine/messages.h"
#include "group/call.h"
#include "group/config.h"
#include "group/execution.h"
#include "group/order.h"
#include "group/planner.h"
#include "group/topology.h"
#include "group/work.h"
#include "local/stage.h"
#include "transport/control.h"

namespace hier {

// Connected descriptors, indexed by rank (doorbells: by local rank). See allreduce/_mesh.py.
struct Wiring {
  std::vector<Fd> control;
  std::vector<std::vector<Fd>> data;  // per lane, and one for messages; empty for this node's ranks
  Fd arena;
  std::vector<Fd> doorbells;
};

struct Traffic {
  uint64_t shared_memory_bytes = 0;  // moved between this rank and others of its node
  uint64_t network_bytes = 0;        // sent to other nodes
};

class Group {
 public:
  Group(GroupConfig config, Wiring wiring);
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  bool inherited() const { return origin_.inherited(); }
  void check_member() const { origin_.check(); }  // throws UsageError in a forked child
  const Topology& topology() const { return topology_; }
  double timeout() const { return timeout_.load(std::memory_order_relaxed); }
  void set_timeout(double seconds);               // of later collectives
  void set_choices(std::vector<Choice> choices);  // all ranks must set the same
  std::string choose(Collective collective, size_t bytes) const;
  // A schedule of the user's under a name of his, between all ranks or between nodes: its size
  // tells. All ranks must register the same.
  void add_schedule(const std::string& name, Collective collective, Schedule schedule, int root);

  void run(Call call);  // blocks; throws. On device memory: start, and wait
  // Returns at once; throws UsageError only, and CudaError. A call on device memory has enqueued
  // its part on the streams by then.
  std::shared_ptr<Work> start(Call call);
  std::shared_ptr<Work> run(const Message& message);  // likewise; the work tells the sender
  std::shared_ptr<Work> start(const Message& message);
  // As work.wait, and drives meanwhile if nobody does: that spares a hand-off. Of a call on device
  // memory: makes the call's stream wait for its result, and throws if it has failed by now.
  bool wait(Work& work, double seconds = -1);

  // Makes `bytes` per local rank of a shared file known as symmetric memory: local rank i's part
  // starts at i * bytes. A call whose data lies there copies nothing. Returns this rank's part.
  std::shared_ptr<SharedMapping> add_symmetric(int fd, size_t bytes);
  std::byte* symmetric_part(const SharedMapping& mapping, size_t bytes) const;
  size_t known_symmetric() const;  // how many of them a call is looked for in

  // The devices of this node's ranks work together from now on. Every rank calls it at the same
  // place among its collectives; calls on other devices go on through the host.
  void set_device_stage(std::shared_ptr<DeviceLocalStage> stage);
  // Once the group has failed, a word of this memory is raised, by which kernels stop to wait.
  void raise_on_failure(const std::shared_ptr<SharedDeviceMemory>& memory, size_t offset);
  bool has_device_stage(int device, size_t bytes) const;
  // Up to here device memory is summed by the CPU. All ranks set it between the same calls.
  size_t host_path_bytes() const { return host_path_bytes_; }
  void set_host_path_bytes(size_t bytes);

  // order.cc: which calls have to wait for which. Earlier ones, not over, that conflict with these
  // ranges: a new call puts them into its `use`, and is known to later ones once it is published,
  // after its last run has been started. (A blocking call need not be: it is over when it returns.)
  std::vector<std::shared_ptr<MemoryUse>> uses_of(std::span<const ByteRange> ranges);
  void publish(const std::shared_ptr<MemoryUse>& use, std::span<const ByteRange> ranges);
  void settle(std::span<const ByteRange> ranges);  // blocks until those earlier ones are over

  Traffic traffic() const;
  void abort(const std::string& reason);  // poisons the group on every rank; from any thread
  // Before the group is destroyed: waits until nothing is in flight. Receives that no rank will
  // send for end with AbortedError: ranks that drain tell each other that they send no more.
  void drain();
  void close();  // says goodbye; idempotent
  // What close() heard from another rank and no call has thrown; told once.
  std::string take_error_at_close() { return std::exchange(error_at_close_, {}); }
  std::exception_ptr error() const;  // what has poisoned the group, if anything

 private:
  struct Run {
    Call call;
    RunHeader header;
    uint64_t digest = 0;  // of this header and of all earlier ones
    Plan plan;
    Clock::time_point begun, deadline;
    bool told_status = false;
    std::shared_ptr<DeviceStage> device;  // null if the buffer is in host memory
    // Of a call that the node's devices work on together: what it waits for.
    std::optional<DeviceLocalStage::Ticket> ticket;
    uint64_t local_hash = 0;
    // In place of the caller's memory, where that is not aligned to its elements.
    std::unique_ptr<std::max_align_t[]> aligned;
    std::optional<Execution> execution;
    std::shared_ptr<Work> work = make_work();

    Run() = default;
    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;
    ~Run() {
      if (device) device->abandon();            // does nothing where the run has ended well
      if (call.use) call.use->earlier.clear();  // likewise; else a long chain would end in one go
    }
  };
  using Channels = std::vector<std::unique_ptr<Channel>>;  // by rank
  struct Lane {
    Channels channels;
    std::unique_ptr<Engine> engine;
    std::unique_ptr<LocalStage> local;
    std::deque<std::unique_ptr<Run>> runs;
    uint64_t local_runs = 0;  // runs of this lane that had a local stage
  };
  // group.cc: life
  Channels open_channels(int index, Wiring& wiring);
  void check_usable() const;
  void listen_at_the_end();

  // submit.cc: what users submit, and who drives it
  std::unique_ptr<Run> prepare(Call call);
  std::shared_ptr<Transfer> prepare(const Message& message, const std::shared_ptr<Work>& work);
  enum class Waited : uint8_t { yes, no };  // whether the caller blocks in the call
  bool submit(std::unique_ptr<Run> run, Waited waited);
  bool submit(std::shared_ptr<Transfer> transfer, Waited waited);
  void number(Run& run);
  void check_admission(Waited waited);
  bool admit();
  void finish(Work& work, bool driving);
  std::shared_ptr<Work> begin(Call call);
  bool take_over();
  void stop_driving();
  void worker_main() noexcept;
  bool await_hand_over();

  // device.cc: calls on device memory
  std::unique_ptr<Run> prepare_on_device(Call call);
  std::unique_ptr<Run> prepare_staged(const Call& call);
  void enqueue_staged(Run& run, const Call& on_device);
  bool works_between_devices(const Call& call) const;
  struct LocalPlan;
  LocalPlan plan_between_devices(const Call& call) const;
  std::unique_ptr<Run> prepare_between_devices(const Call& call);
  void enqueue_between_devices(Run& run, const Call& on_device, const LocalPlan& plan);
  bool end_trailing(Run& run);
  void finish(Run& run);

  // order.cc, of a call without a `use`
  std::shared_ptr<MemoryUse> claim(const Call& call);
  void publish(const std::shared_ptr<MemoryUse>& use, const Call& call);
  void forget_over();

  // drive.cc: one thread at a time moves everything in flight
  enum class Driver { caller, waiter, worker };  // of its own blocking call; of any work; of all
  void drive(const std::function<bool()>& ended, Driver driver);
  bool turn();
  bool advance(Lane& lane);
  void count_traffic(Channels& channels);
  void enqueue(std::unique_ptr<Run> run);
  void accept_pending();
  void end_hopeless_receives();
  void sleep();
  bool waits_for_device() const;
  void check_signals() const;
  void wake();

  // watch.cc: what goes wrong meanwhile, and how that ends the group
  void look_around();
  void handle(int rank, const ControlFrame& frame);
  void tell_status(Run& run);
  void check_deadlines() const;
  [[noreturn]] void time_out(const Run& run) const;
  [[noreturn]] void time_out(const Transfer& transfer) const;
  void check_presence() const;
  bool gone(int rank) const;
  void check_presence(const Lane& lane) const;
  void check_presence(const Run& run) const;
  void check_messages() const;
  void check_silence();
  std::optional<std::string> in_flight() const;
  std::string fate_of(int rank, bool unanswered) const;
  std::exception_ptr cause_of(const BrokenStream& broken);
  void fail(std::exception_ptr error);
  void end_all(std::exception_ptr error);
  [[noreturn]] void throw_failure() const;

  GroupConfig config_;
  Topology topology_;
  const Origin origin_;
  ControlLinks control_;  // owned by the driving thread, but for broadcast in fail()
  std::shared_ptr<Arena> arena_;
  std::unique_ptr<Planner> planner_;
  Doorbells bells_;
  Fd wake_;                  // an eventfd: rouses the driving thread
  std::vector<Lane> lanes_;  // owned by the driving thread
  // Likewise: runs that are over for the host, and not yet in device memory.
  std::vector<std::unique_ptr<Run>> trailing_;
  Channels message_channels_;  // likewise, and the next
  std::unique_ptr<Messages> messages_;
  std::map<int, RunHeader> statuses_;  // last status of each rank; owned by the driving thread
  std::vector<pollfd> poll_fds_;       // likewise
  // The last headers of this rank, to be compared with those of ranks that are behind it.
  std::array<RunHeader, 64> history_;
  unsigned turns_ = 0;          // likewise, and the next two
  Clock::time_point looked_{};  // when it last looked around
  Clock::time_point heard_{};   // likewise, whether the other hosts answer
  Driver driver_ = Driver::worker;
  const std::shared_ptr<PinnedPool> pinned_ = std::make_shared<PinnedPool>();
  std::shared_ptr<DeviceLocalStage>
      device_stage_;  // set once, before calls that use it; null: none

  mutable std::mutex mutex_;  // guards the members below
  // A thread drives, or the worker is about to: so whenever anything is in flight.
  bool driven_ = false;
  std::condition_variable driving_cv_;  // driven_ has become false
  bool handed_over_ = false;            // the worker is to drive, after a moment's grace
  Clock::time_point handed_over_at_{};
  uint64_t hand_overs_ = 0;
  bool dozing_ = false;  // the worker will look for itself: nobody has to wake it
  static constexpr std::chrono::microseconds kGrace{50};  // before the worker takes over
  std::chrono::microseconds doze_ = kGrace;               // until it looks
  std::condition_variable worker_cv_;  // handed over while it does not doze, or closing
  std::vector<std::pair<std::weak_ptr<SharedDeviceMemory>, size_t>> raised_on_failure_;
  std::deque<std::pair<ByteRange, std::shared_ptr<MemoryUse>>>
      in_use_;  // by calls, the oldest first
  std::deque<std::unique_ptr<Run>> pending_;
  std::deque<std::shared_ptr<Transfer>> pending_transfers_;
  uint32_t next_run_ = 0;
  uint64_t history_hash_ = 0;  // of all headers so far
  std::exception_ptr error_;
  std::string error_text_;
  std::string error_at_close_;  // of the thread that closes
  std::thread worker_;

  std::atomic<size_t> host_path_bytes_{256 << 10};  // stands alone
  std::atomic<double> timeout_;                     // seconds; stands alone
  std::atomic<bool> failed_{false};  // set once, after error_ and its text, which stay then
  // Runs and transfers that were submitted and have not ended: counted up under the mutex, for a
  // thread that finds none drives no more.
  std::atomic<size_t> in_flight_{0};
  std::atomic<bool> closing_{false};    // set under the mutex
  std::atomic<bool> draining_{false};   // stands alone
  std::atomic<size_t> num_pending_{0};  // of runs and transfers, for a look without the lock
  std::atomic<size_t> num_in_use_{0};   // of in_use_, for a look without the lock
  std::atomic<uint64_t> shared_bytes_{0};
  std::atomic<uint64_t> network_bytes_{0};
};

inline std::shared_ptr<Group> make_group(GroupConfig config, Wiring wiring) {
  return make_kept_from_children<Group>(std::move(config), std::move(wiring));
}

}  // namespace hier
