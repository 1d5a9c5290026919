// Schedules, and the programs they were lowered to: each made once, for that takes longer than a
// small call does.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "group/call.h"
#include "group/topology.h"
#include "program/program.h"
#include "schedule/schedule.h"

namespace hier {

class Programs {
 public:
  // Steps carry at most segment_bytes. The topology outlives this object.
  Programs(const Topology& topology, size_t segment_bytes)
      : topology_(topology), segment_bytes_(segment_bytes) {}

  // A schedule of the user's, for all ranks or for as many as there are nodes; its root is a rank,
  // or a node. Throws UsageError if it does not keep the collective's promise, or is not for these.
  void add(const std::string& name, Collective collective, Schedule schedule, int root);
  // Whether the name is that of a user's schedule between all ranks.
  bool runs_over_all(Collective collective, const std::string& name, int root) const;
  // Of the moves of the user's schedule that the name stands for; 0: it is none.
  uint32_t fingerprint(Collective collective, const std::string& name) const;
  // The user's schedule of that name, or the algorithm's. Throws UsageError if there is neither.
  std::shared_ptr<const Schedule> schedule(Collective collective, const std::string& algorithm,
                                           int world_size, int root);

  // This rank's part of a collective over all ranks. With `rails` the algorithm runs between the
  // nodes, where so many ranks of each talk to the others; 0: it runs between all ranks.
  std::shared_ptr<const Program> full(const Call& call, const std::string& algorithm, int rails);
  // Likewise of an alltoall, whose parts begin at elements in[r] and out[r].
  std::shared_ptr<const Program> alltoall(const std::string& algorithm, size_t element_bytes,
                                          const std::vector<size_t>& in,
                                          const std::vector<size_t>& out);
  // Of an allreduce of `count` elements among the ranks of this one's rail.
  std::shared_ptr<const Program> rail(const std::string& algorithm, size_t count,
                                      size_t element_bytes);

 private:
  std::shared_ptr<const Schedule> by_node(const Call& call, const std::string& algorithm, int rails,
                                          const std::string& name);
  // The program for `what`; `bounds` and `root` tell its kind apart.
  std::shared_ptr<const Program> lowered(const std::string& what, size_t element_bytes,
                                         const std::vector<size_t>& bounds, int root,
                                         const std::function<Program(size_t segment)>& lower);

  // By collective, algorithm, ranks and root.
  using Schedules =
      std::map<std::tuple<Collective, std::string, int, int>, std::shared_ptr<const Schedule>>;

  const Topology& topology_;
  const size_t segment_bytes_;
  mutable std::mutex mutex_;  // guards what follows
  Schedules schedules_;
  Schedules own_;                                                        // the user's
  std::map<std::pair<Collective, std::string>, uint32_t> fingerprints_;  // of those
  std::map<std::tuple<std::string, std::vector<size_t>, int>, std::shared_ptr<const Program>>
      programs_;
};

}  // namespace hier
