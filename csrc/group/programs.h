// Schedules, and the programs they were lowered to: each made once, for that takes longer than a
// small call does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "group/call.h"
#include "group/relay.h"
#include "group/topology.h"
#include "program/program.h"
#include "schedule/schedule.h"

namespace hier {

// A schedule, and what tells it from others in caches and headers.
struct Named {
  std::string name;
  std::shared_ptr<const Schedule> schedule;
  uint32_t fingerprint = 0;  // of a user's moves; 0: of an algorithm, whose name says all
};

class Programs {
 public:
  // Steps carry at most segment_bytes. one_host: no network card is between the ranks. The topology
  // outlives this object.
  Programs(const Topology& topology, size_t segment_bytes, bool one_host)
      : topology_(topology), segment_bytes_(segment_bytes), one_host_(one_host) {}

  // A schedule of the user's, for all ranks or for as many as there are nodes; its root is a rank,
  // or a node. Takes the place of one of that name and root, and of all of that name and another
  // size. Throws UsageError if it does not keep the collective's promise, or is not for these.
  void add(const std::string& name, Collective collective, Schedule schedule, int root);
  // The user's schedule of that name between all ranks, if there is one.
  std::optional<Named> own_over_all(Collective collective, const std::string& name, int root) const;
  // The user's schedule of that name, or the algorithm's. Throws UsageError if there is neither.
  Named find(Collective collective, const std::string& name, int world_size, int root);
  // The stages within nodes and `between` them, where so many ranks of each talk to the others.
  Named by_node(Collective collective, const Named& between, int rails, int root);

  // This rank's part of a collective over all ranks.
  std::shared_ptr<const Program> full(const Call& call, const Named& schedule);
  // Likewise of an alltoall, whose parts begin at elements in[r] and out[r].
  std::shared_ptr<const Program> alltoall(const Named& schedule, size_t element_bytes,
                                          const std::vector<size_t>& in,
                                          const std::vector<size_t>& out);
  // Likewise, node by node, with so many rails; each part has `part` elements.
  std::shared_ptr<const Relay> relay(const Named& schedule, int rails, size_t element_bytes,
                                     size_t part);
  // Of an allreduce of `count` elements among the ranks of this one's rail.
  std::shared_ptr<const Program> rail(const Named& schedule, size_t count, size_t element_bytes);

 private:
  // The program for a schedule in the role of `what`; `bounds` and `root` tell its kind apart.
  std::shared_ptr<const Program> lowered(const std::string& what, const Named& schedule,
                                         size_t element_bytes, const std::vector<size_t>& bounds,
                                         int root,
                                         const std::function<Program(size_t segment)>& lower);

  // The machine of each rank, or of each node of a rail: what goes to others passes a network card.
  std::vector<int> machine_of_rank() const;
  std::vector<int> machine_of_node() const;

  // By collective, name, ranks and root.
  using Schedules = std::map<std::tuple<Collective, std::string, int, int>, Named>;

  const Topology& topology_;
  const size_t segment_bytes_;
  const bool one_host_;
  mutable std::mutex mutex_;  // guards what follows
  Schedules own_;             // the user's
  Schedules schedules_;       // a user's fingerprint is part of the name
  std::map<std::tuple<std::string, std::vector<size_t>, int>, std::shared_ptr<const Program>>
      programs_;  // likewise
  std::map<std::tuple<std::string, int, size_t, size_t>, std::shared_ptr<const Relay>> relays_;
};

}  // namespace hier
