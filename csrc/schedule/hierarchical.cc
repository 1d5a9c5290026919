// Lists of stages, and their rendering.
#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "schedule/builders.h"
#include "schedule/stages.h"

namespace hier {
namespace {

using C = Collective;
using enum Scope;

constexpr Stage kAllreduce[] = {
    {node, C::reduce_scatter}, {rail, C::allreduce}, {node, C::allgather}};
constexpr Stage kReduceScatter[] = {
    {node, C::reduce_scatter}, {rail, C::reduce_scatter}, {node, C::scatter}};
constexpr Stage kAllgather[] = {{node, C::gather}, {rail, C::allgather}, {node, C::allgather}};
constexpr Stage kBroadcast[] = {{node, C::scatter}, {rail, C::broadcast}, {node, C::allgather}};
constexpr Stage kReduce[] = {{node, C::reduce_scatter}, {rail, C::reduce}, {node, C::gather}};
constexpr Stage kGather[] = {{node, C::gather}, {rail, C::gather}};
constexpr Stage kScatter[] = {{rail, C::scatter}, {node, C::scatter}};
constexpr Stage kAlltoall[] = {{node, C::alltoall}, {rail, C::alltoall}, {node, C::scatter}};

using Members = std::vector<std::vector<int>>;  // the ranks of each node, ascending

Members members_of(const std::vector<int>& node_of) {
  Members members;
  for (int rank = 0; rank < static_cast<int>(node_of.size()); ++rank) {
    const int node = node_of[static_cast<size_t>(rank)];
    if (node < 0) throw std::invalid_argument("hierarchical: nodes are numbered from 0");
    if (static_cast<size_t>(node) >= members.size()) members.resize(static_cast<size_t>(node) + 1);
    members[static_cast<size_t>(node)].push_back(rank);
  }
  return members;
}

int place_in(const std::vector<int>& ranks, int rank) {
  return static_cast<int>(std::ranges::find(ranks, rank) - ranks.begin());
}

void check_arguments(Collective collective, const Members& members, const Schedule& between,
                     int rails) {
  const auto wrong = [](const std::string& what) {
    throw std::invalid_argument("hierarchical: " + what);
  };
  if (stages_of(collective).empty()) wrong(std::string(name_of(collective)) + " has no such form");
  if (members.empty()) wrong("at least one node is needed");
  size_t smallest = members.front().size();
  for (const auto& ranks : members) smallest = std::min(smallest, ranks.size());
  if (smallest < 1) wrong("a node needs at least one rank");
  if (rails < 1 || static_cast<size_t>(rails) > smallest)
    wrong("rails must be 1 to " + std::to_string(smallest) +
          ", the size of the smallest node, not " + std::to_string(rails));
  if (static_cast<size_t>(between.world_size) != members.size())
    wrong("the schedule between nodes is for " + std::to_string(between.world_size) +
          " of them, not for " + std::to_string(members.size()));
}

// Where the chunks are between the stages.
class Shards {
 public:
  Shards(const CollectiveInfo& what, Members members, int chunks_between, int rails, int root)
      : members_(std::move(members)), root_(what.rooted ? root : -1) {
    if (what.chunks == Chunks::any) {
      share_evenly(chunks_between, rails);
    } else if (what.chunks == Chunks::per_pair) {
      share_by_target(rails);
    } else if (what.rooted) {
      collect_at_leaders();
    } else {
      share_by_place(rails);
    }
    if (node_of_.empty()) num_chunks_ = static_cast<int>(owners_.front().size());
  }

  int num_chunks() const { return num_chunks_; }
  int num_ranks() const { return static_cast<int>(world_size()); }
  const Members& members() const { return members_; }
  int root() const { return root_; }
  // The rank of the node that has the chunk when rails begin, or when they have ended.
  int owner(int node, int chunk) const {
    const auto& owners = owners_[static_cast<size_t>(node)];
    if (node_of_.empty()) return owners[static_cast<size_t>(chunk)];
    const auto source = static_cast<size_t>(chunk / num_ranks());
    const auto target = static_cast<size_t>(chunk % num_ranks());
    return node_of_[source] == node_of_[target] ? static_cast<int>(target) : owners[target];
  }
  // Of each rail: the chunks that a chunk of the schedule between nodes stands for.
  const std::vector<std::vector<std::vector<int>>>& rails() const { return rails_; }

 private:
  // Each rail has an even share, in which the chunks between nodes follow one another. In the
  // root's node the root has the first, so that with one rail nothing moves there.
  void share_evenly(int chunks_between, int rails) {
    for (const auto& ranks : members_) {
      const int first = place_in(ranks, root_) % static_cast<int>(ranks.size());  // 0: not here
      auto& owners = owners_.emplace_back();
      for (int chunk = 0; chunk < rails * chunks_between; ++chunk)
        owners.push_back(ranks[static_cast<size_t>(first + chunk / chunks_between) % ranks.size()]);
    }
    for (int chunk = 0; chunk < rails * chunks_between; ++chunk) {
      if (chunk % chunks_between == 0) rails_.emplace_back();
      rails_.back().push_back({chunk});
    }
  }

  // The ranks at one place of their nodes form a rail, whose chunk i is that of node i's rank
  // there. Ranks at places beyond the rails share them in turn.
  void share_by_place(int rails) {
    const auto num_rails = static_cast<size_t>(rails);
    owners_.assign(members_.size(), std::vector<int>(world_size()));
    rails_.assign(num_rails, std::vector<std::vector<int>>(members_.size()));
    for (size_t home = 0; home < members_.size(); ++home) {
      for (size_t place = 0; place < members_[home].size(); ++place) {
        const size_t rail = place % num_rails;
        const int chunk = members_[home][place];
        rails_[rail][home].push_back(chunk);
        for (size_t node = 0; node < members_.size(); ++node)
          owners_[node][static_cast<size_t>(chunk)] = members_[node][rail];
      }
    }
  }

  // What goes to the ranks at one place of their nodes forms a rail, whose chunk a * nodes + b is
  // all that node a has for those of node b. Within a node each chunk goes to its target at once.
  void share_by_target(int rails) {
    const size_t p = world_size(), nodes = members_.size(), num_rails = static_cast<size_t>(rails);
    num_chunks_ = num_ranks() * num_ranks();
    node_of_.resize(p);
    owners_.assign(nodes, std::vector<int>(p));  // by target
    rails_.assign(num_rails, std::vector<std::vector<int>>(nodes * nodes));
    for (size_t home = 0; home < nodes; ++home) {
      for (size_t place = 0; place < members_[home].size(); ++place) {
        const auto target = static_cast<size_t>(members_[home][place]);
        node_of_[target] = home;
        for (size_t node = 0; node < nodes; ++node)
          owners_[node][target] = members_[node][place % num_rails];
      }
    }
    for (size_t a = 0; a < nodes; ++a)
      for (size_t b = 0; b < nodes; ++b)
        for (const int source : members_[a])
          for (size_t place = 0; place < members_[b].size(); ++place)
            rails_[place % num_rails][a * nodes + b].push_back(source * num_ranks() +
                                                               members_[b][place]);
  }

  // One rail: a node's parts travel together.
  void collect_at_leaders() {
    for (const auto& ranks : members_) {
      const bool has_root = static_cast<size_t>(place_in(ranks, root_)) < ranks.size();
      owners_.emplace_back(world_size(), has_root ? root_ : ranks.front());
    }
    rails_.push_back(members_);
  }

  size_t world_size() const {
    return std::accumulate(members_.begin(), members_.end(), size_t{0},
                           [](size_t sum, const auto& ranks) { return sum + ranks.size(); });
  }

  Members members_;
  int root_;  // -1: there is none
  int num_chunks_ = 0;
  std::vector<size_t> node_of_;  // by rank; only where there is a chunk for each pair of ranks
  std::vector<std::vector<int>> owners_;  // by node and chunk; there: by node and target
  std::vector<std::vector<std::vector<int>>> rails_;
};

void add_rails(Schedule& result, const Shards& shards, const Schedule& between) {
  const size_t first = result.rounds.size();
  result.rounds.resize(first + between.rounds.size());
  for (const auto& chunks : shards.rails())
    for (size_t t = 0; t < between.rounds.size(); ++t)
      for (const Move& m : between.rounds[t])
        for (int i = m.lo; i < m.hi; ++i)
          for (const int c : chunks[static_cast<size_t>(i)])
            append(result.rounds[first + t],
                   {shards.owner(m.src, c), shards.owner(m.dst, c), c, c + 1, m.reduce});
}

// Each chunk is summed at its owner, along the canonical tree of the node.
Schedule sum_in(const Shards& shards, int node) {
  const auto& ranks = shards.members()[static_cast<size_t>(node)];
  std::vector<int> owners;
  for (int chunk = 0; chunk < shards.num_chunks(); ++chunk)
    owners.push_back(place_in(ranks, shards.owner(node, chunk)));
  return tree_reduce_scatter(static_cast<int>(ranks.size()), owners);
}

// A round of copies among the ranks of a node.
class NodeRound {
 public:
  NodeRound(const Shards& shards, int node)
      : ranks_(shards.members()[static_cast<size_t>(node)]), num_chunks_(shards.num_chunks()) {}

  bool has(int rank) const { return std::ranges::find(ranks_, rank) != ranks_.end(); }
  void move(int from, int to, int chunk) {
    if (from == to) return;
    append(round_, {place_in(ranks_, from), place_in(ranks_, to), chunk, chunk + 1, false});
  }
  Schedule schedule() const {
    Schedule result{static_cast<int>(ranks_.size()), num_chunks_, {}};
    if (!round_.empty()) result.rounds.push_back(round_);
    return result;
  }

 private:
  const std::vector<int>& ranks_;
  int num_chunks_;
  Round round_;
};

// The root collects what its node's owners have; without an end at one rank, each owner what the
// node's ranks have.
Schedule gather_in(const Shards& shards, const CollectiveInfo& what, int node) {
  NodeRound round(shards, node);
  if (what.chunks == Chunks::per_rank) {
    for (const int rank : shards.members()[static_cast<size_t>(node)])
      round.move(rank, shards.owner(node, rank), rank);
  } else if (round.has(shards.root())) {
    for (int chunk = 0; chunk < shards.num_chunks(); ++chunk)
      round.move(shards.owner(node, chunk), shards.root(), chunk);
  }
  return round.schedule();
}

// Each rank hands on what it has for others: to its target in the node, or to the owner of what
// goes to another node.
Schedule exchange_in(const Shards& shards, int node) {
  NodeRound round(shards, node);
  const int p = shards.num_ranks();
  for (const int source : shards.members()[static_cast<size_t>(node)])
    for (int chunk = source * p; chunk < (source + 1) * p; ++chunk)
      round.move(source, shards.owner(node, chunk), chunk);
  return round.schedule();
}

// The owners in the node hand out what has come from other nodes.
Schedule deliver_in(const Shards& shards, int node) {
  NodeRound round(shards, node);
  const int p = shards.num_ranks();
  for (const int target : shards.members()[static_cast<size_t>(node)])
    for (int source = 0; source < p; ++source)
      if (!round.has(source))
        round.move(shards.owner(node, source * p + target), target, source * p + target);
  return round.schedule();
}

Schedule within_node(const Shards& shards, const CollectiveInfo& what, Collective stage, int node) {
  switch (stage) {
    case C::reduce_scatter:
      return sum_in(shards, node);
    case C::allgather:
      return reversed(sum_in(shards, node));
    case C::gather:
      return gather_in(shards, what, node);
    case C::alltoall:
      return exchange_in(shards, node);
    default:
      return what.chunks == Chunks::per_pair ? deliver_in(shards, node)
                                             : reversed(gather_in(shards, what, node));
  }
}

void add_nodes(Schedule& result, const Shards& shards, const CollectiveInfo& what,
               Collective stage) {
  const size_t first = result.rounds.size();
  for (size_t node = 0; node < shards.members().size(); ++node)
    overlay(result, first, within_node(shards, what, stage, static_cast<int>(node)),
            shards.members()[node], 0);
  if (what.before != Holders::root) return;
  for (size_t t = first; t < result.rounds.size(); ++t)  // the root has everything
    std::erase_if(result.rounds[t], [&](const Move& m) { return m.dst == shards.root(); });
}

}  // namespace

std::span<const Stage> stages_of(Collective collective) {
  switch (collective) {
    case C::allreduce:
      return kAllreduce;
    case C::reduce_scatter:
      return kReduceScatter;
    case C::allgather:
      return kAllgather;
    case C::broadcast:
      return kBroadcast;
    case C::reduce:
      return kReduce;
    case C::gather:
      return kGather;
    case C::scatter:
      return kScatter;
    case C::alltoall:
      return kAlltoall;
    default:
      return {};
  }
}

Schedule hierarchical(Collective collective, const std::vector<int>& node_of,
                      const Schedule& between, int rails, int root) {
  const CollectiveInfo& what = info(collective);
  const int world_size = static_cast<int>(node_of.size());
  Members members = members_of(node_of);
  check_arguments(collective, members, between, rails);
  if (root < 0 || root >= world_size)
    throw std::invalid_argument("hierarchical: root must be 0 to " +
                                std::to_string(world_size - 1) + ", not " + std::to_string(root));
  const Shards shards(what, std::move(members), between.num_chunks, rails, root);
  Schedule result{world_size, shards.num_chunks(), {}};
  for (const Stage& stage : stages_of(collective)) {
    if (stage.scope == rail) {
      add_rails(result, shards, between);
    } else {
      add_nodes(result, shards, what, stage.what);
    }
  }
  return result;
}

}  // namespace hier
