// Calls to plans, with what is known of earlier ones. Any thread may ask; nothing here waits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/header.h"
#include "group/call.h"
#include "group/config.h"
#include "group/execution.h"
#include "group/programs.h"
#include "group/run.h"
#include "group/symmetric_memory.h"
#include "group/topology.h"

namespace hier {

// From which size on which algorithm serves a collective; the first that fits is taken.
struct Choice {
  Collective collective;
  size_t max_bytes;
  std::string algorithm;
};

class Planner {
 public:
  // Inside a node a piece fills a slot of slot_bytes. What is passed by reference outlives this.
  Planner(const GroupConfig& config, const Topology& topology, size_t slot_bytes)
      : config_(config),
        topology_(topology),
        slot_bytes_(slot_bytes),
        programs_(topology, config.segment_bytes, config.one_host) {}

  // The run of a call that is made now, by these and the call's own deadlines (seconds).
  std::unique_ptr<Run> make_run(Call call, Clock::time_point now, double timeout);
  // The plan of a call, and the header that its ranks compare. Throws UsageError.
  Plan plan(const Call& call, RunHeader& header);
  // How the devices of a node that sum among themselves cut an allreduce: the pieces, of at most
  // slot_bytes, and their shards.
  Plan between_devices(const Call& call, size_t slot_bytes) const;
  std::string choose(Collective collective, size_t bytes) const;

  void set_choices(std::vector<Choice> choices);
  void add_schedule(const std::string& name, Collective collective, Schedule schedule, int root);
  // Whether it runs a schedule of the user's between all ranks, in whatever memory the buffer is.
  bool runs_over_all(const Call& call) const {
    return programs_.own_over_all(call.collective, call.algorithm, call.root).has_value();
  }
  SymmetricMemory& symmetric() { return symmetric_; }  // calls are looked for there

 private:
  // A call that was planned; the plan lacks the place of the buffer.
  struct Known {
    Call call;
    Plan plan;
    RunHeader header;
  };

  bool may_go_by_node(Collective collective) const;
  bool goes_by_node(const Call& call) const;
  int rails(size_t bytes) const;
  int most_rails() const;
  uint32_t options_hash() const;
  void fill_header(RunHeader& header, const Call& call, const std::string& algorithm,
                   uint32_t fingerprint) const;
  bool recall(const Call& call, Plan& plan, RunHeader& header, uint64_t& generation);
  std::optional<Known>& known_place(const Call& call);
  void remember(const Call& call, const Plan& plan, const RunHeader& header, uint64_t generation);
  Plan new_plan(const Call& call, RunHeader& header);
  void place(Plan& plan, const Call& call, uint32_t& place_hash);
  void work_on_parts(Plan& plan, const Call& call) const;
  Plan staged_plan(const Call& call, const Named& between);
  Named between_all(const Call& call, const std::string& algorithm);
  Plan flat_plan(const Call& call, const Named& schedule, uint32_t& place_hash);
  void cut_for_device(Plan& plan, const Call& call, const Named& schedule, uint32_t& place_hash);
  Plan alltoall_plan(const Call& call, const Named& schedule, bool relayed);

  const GroupConfig& config_;
  const Topology& topology_;
  const size_t slot_bytes_;
  Programs programs_;
  SymmetricMemory symmetric_;
  mutable std::mutex mutex_;  // guards what follows
  std::vector<Choice> choices_;
  std::array<std::optional<Known>, 64> known_;  // by a hash of the call
  uint64_t generation_ = 0;  // of choices and schedules: plans of others are stale
};

}  // namespace hier
