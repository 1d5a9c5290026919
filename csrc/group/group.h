// A group of ranks: what users hold. It plans their calls, orders those that touch the same memory,
// and hands them to the driver.
//
// A forked child is no member: every call that locks, drives or waits throws UsageError there,
// close does nothing, and the object is left as it is (make_group).
#pragma once

#include <atomic>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/fork.h"
#include "group/call.h"
#include "group/config.h"
#include "group/device_calls.h"
#include "group/driver.h"
#include "group/member.h"
#include "group/on_demand.h"
#include "group/order.h"
#include "group/planner.h"
#include "group/topology.h"
#include "group/work.h"

namespace hier {

// Connected descriptors, indexed by rank (doorbells: by local rank). See
// allreduce/rendezvous/connect.py.
struct Connections {
  std::vector<Fd> control;
  std::vector<std::vector<Fd>> data;  // per lane, and one for messages; empty for this node's ranks
  Fd connector;  // an eventfd: ranks of other nodes that have no data are connected on demand
  Fd arena;
  std::vector<Fd> doorbells;
};

class Group {
 public:
  Group(GroupConfig config, Connections connections);
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  bool inherited() const { return origin_.inherited(); }
  void check_member() const { origin_.check(); }  // throws UsageError in a forked child
  const Topology& topology() const { return topology_; }
  double timeout() const { return timeout_.load(std::memory_order_relaxed); }
  void set_timeout(double seconds);  // of later collectives
  // Calls to plans: what is set there, all ranks must set the same.
  Planner& planner() const;
  // Calls on device memory, likewise.
  DeviceCalls& device_calls() const;

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
  // starts at i * bytes. A call whose data lies there copies nothing.
  std::shared_ptr<SharedMapping> add_symmetric(int fd, size_t bytes);

  // Which calls have to wait for which: see MemoryOrder.
  std::vector<std::shared_ptr<MemoryUse>> uses_of(std::span<const ByteRange> ranges);
  void publish(const std::shared_ptr<MemoryUse>& use, std::span<const ByteRange> ranges);
  void settle(std::span<const ByteRange> ranges);  // blocks until those earlier ones are over

  // By whoever connects ranks on demand, in a thread of his own: see OnDemand. Nothing happens once
  // the group is closed. `sockets`: one for each lane, and one for messages.
  std::vector<int> take_requests();
  void connect(int rank, std::vector<Fd> sockets);
  void give_up(int rank, const std::string& reason, bool unanswered, bool closed);
  bool pass_on();                 // see Driver::pass_on
  std::vector<int> gone_ranks();  // see Driver::gone_ranks

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
  Links open_links(Connections connections);
  Channels open_channels(int index, std::vector<Fd>& sockets);
  std::unique_ptr<Channel> open_channel(int rank, Fd socket);
  void check_usable() const;
  std::unique_ptr<Run> make_run(Call call);
  std::shared_ptr<MemoryUse> claim(std::span<const ByteRange> ranges);
  std::shared_ptr<Work> begin(Call call);
  std::shared_ptr<Transfer> make_transfer(const Message& message,
                                          const std::shared_ptr<Work>& work);

  const GroupConfig config_;
  const Topology topology_;
  const Origin origin_;
  std::shared_ptr<Arena> arena_;  // null for a rank that is alone on its node
  Doorbells bells_;
  OnDemand on_demand_;
  std::unique_ptr<Planner> planner_;
  std::unique_ptr<DeviceCalls> device_calls_;
  std::unique_ptr<Member> member_;
  std::unique_ptr<Driver> driver_;
  MemoryOrder order_;
  std::atomic<double> timeout_;  // seconds; stands alone
  std::string error_at_close_;   // of the thread that closes
};

inline std::shared_ptr<Group> make_group(GroupConfig config, Connections connections) {
  return make_kept_from_children<Group>(std::move(config), std::move(connections));
}

}  // namespace hier
