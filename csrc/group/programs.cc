// Schedules and programs by what they were made of.
#include "group/programs.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <stdexcept>

#include "base/crc32c.h"
#include "base/error.h"
#include "group/parts.h"
#include "schedule/builders.h"
#include "schedule/registry.h"
#include "schedule/stages.h"

namespace hier {

namespace {

constexpr size_t kMaxPrograms = 256, kMaxSchedules = 64;  // kept, then all are dropped

// Ranks have room for the chunks that they send and those that they get, in an alltoall.
std::string detour(const Schedule& schedule) {
  const int p = schedule.world_size;
  for (const Round& round : schedule.rounds) {
    for (const Move& move : round) {
      if (move.hi == move.lo + 1 && move.lo == move.src * p + move.dst) continue;
      return describe(move) + " is not a chunk's way from its source to its target, the only one " +
             "for which ranks have room";
    }
  }
  return "";
}

uint32_t fingerprint_of(const Schedule& schedule) {
  uint32_t crc = 0;
  const auto add = [&crc](const auto&... values) {
    ((crc = crc32c(crc, std::as_bytes(std::span(&values, 1)))), ...);
  };
  add(schedule.world_size, schedule.num_chunks);
  int number = 0;
  for (const Round& round : schedule.rounds) {
    add(++number);
    for (const Move& m : round) add(m.src, m.dst, m.lo, m.hi, m.reduce);
  }
  return crc | 1;  // never 0
}

}  // namespace

void Programs::add(const std::string& name, Collective collective, Schedule schedule, int root) {
  const std::string what = "schedule '" + name + "'";
  const int ranks = schedule.world_size;
  if (ranks != topology_.world_size && ranks != topology_.num_nodes) {
    throw UsageError(what + " is for " + std::to_string(ranks) + " ranks; this group has " +
                     std::to_string(topology_.world_size) + ", on " +
                     std::to_string(topology_.num_nodes) + " nodes");
  }
  std::string wrong = check(schedule, collective, root);
  const bool pairs = info(collective).chunks == Chunks::per_pair;
  if (wrong.empty() && pairs) wrong = detour(schedule);
  if (wrong.empty() && pairs && ranks != topology_.world_size)
    wrong = "it is for " + std::to_string(ranks) + " nodes, and has to be for all ranks";
  if (!wrong.empty()) throw UsageError(what + " is no " + name_of(collective) + ": " + wrong);
  const uint32_t print = fingerprint_of(schedule);
  Named own{name, std::make_shared<const Schedule>(std::move(schedule)), print};
  const std::lock_guard lock(mutex_);
  std::erase_if(own_, [&](const auto& entry) {
    const auto& [of, by, size, at] = entry.first;
    return of == collective && by == name && size != ranks;
  });
  own_.insert_or_assign({collective, name, ranks, root}, std::move(own));
}

std::optional<Named> Programs::own_over_all(Collective collective, const std::string& name,
                                            int root) const {
  const std::lock_guard lock(mutex_);
  const auto own = own_.find({collective, name, topology_.world_size, root});
  return own == own_.end() ? std::nullopt : std::optional(own->second);
}

Named Programs::find(Collective collective, const std::string& name, int world_size, int root) {
  const std::lock_guard lock(mutex_);
  const auto key = std::tuple(collective, name, world_size, root);
  if (const auto own = own_.find(key); own != own_.end()) return own->second;
  if (const auto known = schedules_.find(key); known != schedules_.end()) return known->second;
  try {
    auto built = std::make_shared<const Schedule>(build(collective, name, world_size, root));
    if (schedules_.size() >= kMaxSchedules) schedules_.clear();
    return schedules_.emplace(key, Named{name, std::move(built)}).first->second;
  } catch (const std::invalid_argument& wrong) {
    throw UsageError(wrong.what());
  }
}

Named Programs::by_node(Collective collective, const Named& between, int rails, int root) {
  const std::string name =
      std::to_string(rails) + " rails, " + between.name + "#" + std::to_string(between.fingerprint);
  const auto key = std::tuple(collective, name, topology_.world_size, root);
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = schedules_.find(key); known != schedules_.end()) return known->second;
  }
  auto made = std::make_shared<const Schedule>(
      hierarchical(collective, topology_.node_of_rank, *between.schedule, rails, root));
  const std::lock_guard lock(mutex_);
  if (schedules_.size() >= kMaxSchedules) schedules_.clear();
  return schedules_.emplace(key, Named{name, std::move(made), between.fingerprint}).first->second;
}

std::shared_ptr<const Program> Programs::lowered(
    const std::string& what, const Named& schedule, size_t element_bytes,
    const std::vector<size_t>& bounds, int root,
    const std::function<Program(size_t segment)>& lower) {
  const size_t segment = std::max<size_t>(1, segment_bytes_ / element_bytes);
  const std::string name = what + ":" + schedule.name + "#" + std::to_string(schedule.fingerprint) +
                           ":" + std::to_string(segment);
  const auto key = std::tuple(name, bounds, root);
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = programs_.find(key); known != programs_.end()) return known->second;
  }
  auto program = std::make_shared<const Program>(lower(segment));  // long: not under the lock
  const std::lock_guard lock(mutex_);
  if (programs_.size() >= kMaxPrograms) programs_.clear();
  return programs_.emplace(key, std::move(program)).first->second;
}

std::vector<int> Programs::machine_of_rank() const {
  if (one_host_) return std::vector<int>(topology_.node_of_rank.size(), 0);
  return topology_.node_of_rank;
}

std::vector<int> Programs::machine_of_node() const {
  std::vector<int> machines(static_cast<size_t>(topology_.num_nodes), 0);
  if (!one_host_) std::iota(machines.begin(), machines.end(), 0);
  return machines;
}

std::shared_ptr<const Program> Programs::full(const Call& call, const Named& schedule) {
  const Schedule& s = *schedule.schedule;
  const auto bounds = info(call.collective).chunks == Chunks::per_rank
                          ? parts_of(call.bounds, call.count, topology_.world_size)
                          : even_bounds(call.count, s.num_chunks);
  return lowered(
      name_of(call.collective), schedule, size_of(call.dtype), bounds, call.root,
      [&](size_t segment) { return lower(s, topology_.rank, bounds, segment, machine_of_rank()); });
}

std::shared_ptr<const Program> Programs::alltoall(const Named& schedule, size_t element_bytes,
                                                  const std::vector<size_t>& in,
                                                  const std::vector<size_t>& out) {
  const int p = topology_.world_size, me = topology_.rank;
  auto sizes = in;
  sizes.insert(sizes.end(), out.begin(), out.end());
  return lowered("alltoall", schedule, element_bytes, sizes, 0, [&](size_t segment) {
    // A rank knows the sizes of the chunks that it sends or receives; the others are not for it.
    std::vector<size_t> bounds{0};
    for (int src = 0; src < p; ++src) {
      for (int dst = 0; dst < p; ++dst) {
        const size_t size = src == me   ? in[dst + 1] - in[dst]
                            : dst == me ? out[src + 1] - out[src]
                                        : 0;
        bounds.push_back(bounds.back() + size);
      }
    }
    Program program = lower(*schedule.schedule, me, bounds, segment, machine_of_rank());
    for (size_t i = 0; i < program.num_steps(); ++i) {
      Step& step = program.steps[i];
      const size_t place = step.kind == StepKind::send ? in[step.peer] : out[step.peer];
      step.offset = place + step.offset - bounds[step.chunk];
    }
    // Every pair exchanges a header at least, in which a wrong amount shows.
    for (int peer = 0; peer < p; ++peer) {
      if (peer == me) continue;
      if (in[peer] == in[peer + 1]) program.queues.push_back({peer, true, 0, 0});
      if (out[peer] == out[peer + 1]) program.queues.push_back({peer, false, 0, 0});
    }
    return program;
  });
}

std::shared_ptr<const Relay> Programs::relay(const Named& schedule, int rails, size_t element_bytes,
                                             size_t part) {
  const size_t segment = std::max<size_t>(1, segment_bytes_ / element_bytes);
  const auto key = std::tuple(schedule.name, rails, segment, part);
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = relays_.find(key); known != relays_.end()) return known->second;
  }
  auto relay = std::make_shared<const Relay>(
      make_relay(*schedule.schedule, topology_, machine_of_rank(), rails, part, segment));
  const std::lock_guard lock(mutex_);
  if (relays_.size() >= kMaxPrograms) relays_.clear();
  return relays_.emplace(key, std::move(relay)).first->second;
}

std::shared_ptr<const Program> Programs::rail(const Named& schedule, size_t count,
                                              size_t element_bytes) {
  const Schedule& s = *schedule.schedule;
  return lowered("rail", schedule, element_bytes, {count}, 0, [&](size_t segment) {
    Program program =
        lower(s, topology_.node, even_bounds(count, s.num_chunks), segment, machine_of_node());
    const std::vector<int> ranks = topology_.rail(topology_.local_rank);
    for (size_t i = 0; i < program.num_steps(); ++i) {
      program.steps[i].peer = ranks[program.steps[i].peer];
    }
    for (Queue& queue : program.queues) queue.peer = ranks[queue.peer];
    return program;
  });
}

}  // namespace hier
