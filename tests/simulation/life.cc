// Living: who acts next, when something arrives, when something breaks.
#include "life.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>

#include "base/error.h"
#include "base/fd.h"

namespace hier::simulation {

namespace {

constexpr size_t kMostSteps = 2'000'000;
constexpr int kMostNodes = 3;
constexpr size_t kSymmetricBytes = 1 << 20;  // of a node

Fd file_of(size_t bytes) {
  Fd file(check_errno(::memfd_create("simulated", MFD_CLOEXEC), "memfd_create"));
  check_errno(::ftruncate(file.get(), static_cast<off_t>(bytes)), "ftruncate");
  return file;
}

}  // namespace

Life::Life(const Scenario& scenario, bool trace)
    : scenario_(scenario), trace_(trace), random_(scenario.seed), model_(scenario) {
  timing_.now = kBegin;
  timing_.wake = [this](Clock::time_point at, int rank, Carries what) {
    events_.push({at, rank, what});
  };
  const int p = scenario.world_size();
  wires_.resize((static_cast<size_t>(scenario.lanes) + 2) * scenario.node_of_rank.size() *
                scenario.node_of_rank.size());
  awake_.assign(scenario.node_of_rank.size(), 1);
  called_ = awake_;
  applied_.assign(scenario.faults.size(), 0);
  std::vector<SharedMemory> shared;
  for (int node = 0; node < kMostNodes; ++node) shared.push_back(shared_memory_of(node));
  for (int rank = 0; rank < p; ++rank) {
    ranks_.push_back(
        std::make_unique<Rank>(scenario, model_, timing_, random_, rank, connect(rank),
                               shared[static_cast<size_t>(scenario.node_of_rank[rank])],
                               [this](int other) { call(other); }));
  }
  for (size_t i = 0; i < scenario.faults.size(); ++i) {
    events_.push({kBegin + scenario.faults[i].at, -1 - static_cast<int>(i), {}});
  }
}

// Shared memory is used again by later lives.
SharedMemory Life::shared_memory_of(int node) const {
  int size = 0;
  for (const int n : scenario_.node_of_rank) size += n == node;
  if (size == 0) return {};
  static std::array<std::shared_ptr<SharedMapping>, kMostNodes> known;
  auto& symmetric = known[static_cast<size_t>(node)];
  if (!symmetric) symmetric = SharedMapping::open(file_of(kSymmetricBytes).get(), kSymmetricBytes);
  return {size > 1 ? arena_of(node, size) : nullptr, scenario_.symmetric ? symmetric : nullptr};
}

std::shared_ptr<Arena> Life::arena_of(int node, int local_size) const {
  const ArenaLayout layout{local_size, scenario_.lanes, scenario_.slot_bytes, 4,
                           scenario_.ring_bytes};
  static std::map<std::array<size_t, 5>, std::shared_ptr<Arena>> known;
  auto& arena = known[{static_cast<size_t>(node), static_cast<size_t>(local_size),
                       static_cast<size_t>(layout.lanes), layout.slot_bytes, layout.ring_bytes}];
  if (!arena) arena = std::make_shared<Arena>(file_of(layout.bytes()), layout);
  std::memset(arena->raw(0), 0, layout.bytes());
  return arena;
}

// Kinds: lanes, then messages, then control.
Wire& Life::wire(int from, int to, size_t kind) {
  const size_t p = scenario_.node_of_rank.size();
  auto& place = wires_[(kind * p + static_cast<size_t>(from)) * p + static_cast<size_t>(to)];
  if (place) return *place;
  const bool network = scenario_.node_of_rank[from] != scenario_.node_of_rank[to];
  const auto lanes = static_cast<size_t>(scenario_.lanes);
  WireOptions options;
  options.carries = kind < lanes    ? Carries::data
                    : kind == lanes ? Carries::messages
                                    : Carries::control;
  const auto most = static_cast<size_t>(scenario_.most_delay.count());
  options.delay = Clock::duration(network ? random_.between(most / 20, most) : 1000);
  options.capacity = options.carries == Carries::control ? 1 << 16 : scenario_.capacity;
  options.network = network;
  options.checked = scenario_.checksum;
  if (random_.one_in(8)) options.most = random_.between(8, 100);
  if (options.carries == Carries::control) options.most = SIZE_MAX;
  place = std::make_unique<Wire>(timing_, random_, options, from, to);
  return *place;
}

Links Life::connect(int rank) {
  Links links;
  const int p = scenario_.world_size();
  static End always;
  const auto open = [&](size_t kind, bool control) {
    Channels channels(static_cast<size_t>(p));
    for (int other = 0; other < p; ++other) {
      const bool apart = scenario_.node_of_rank[other] != scenario_.node_of_rank[rank];
      if (other == rank || (control ? !scenario_.linked(rank, other) : !apart)) continue;
      channels[static_cast<size_t>(other)] = std::make_unique<SimulatedChannel>(
          wire(rank, other, kind), wire(other, rank, kind), control ? always : end_of(rank, other));
    }
    return channels;
  };
  const auto lanes = static_cast<size_t>(scenario_.lanes);
  for (size_t lane = 0; lane < lanes; ++lane) links.lanes.push_back(open(lane, false));
  links.messages = open(lanes, false);
  links.control = open(lanes + 1, true);
  return links;
}

std::string Life::run() {
  try {
    live();
    check_ends();
  } catch (const Wrong& wrong) {
    return wrong.what();
  } catch (const std::exception& error) {
    return std::string("an exception left a rank: ") + error.what();
  }
  return "";
}

bool Life::ready(int rank) const {
  const Rank& r = at(rank);
  return awake_[static_cast<size_t>(rank)] && !r.over() && r.paused_until() <= timing_.now;
}

void Life::live() {
  const int p = scenario_.world_size();
  std::vector<int> candidates;
  for (;;) {
    deliver();
    candidates.clear();
    bool all_over = true;
    for (int rank = 0; rank < p; ++rank) {
      all_over &= at(rank).over();
      if (ready(rank)) candidates.push_back(rank);
    }
    if (all_over) return;
    if (candidates.empty()) {
      if (events_.empty()) throw Wrong("nobody moves any more");
      timing_.now = std::max(timing_.now, events_.top().at);
      continue;
    }
    if (++steps_ > kMostSteps) throw Wrong("there is no end");
    const int rank = random_.of(candidates);
    const bool by_clock = !std::exchange(called_[static_cast<size_t>(rank)], 0);
    const bool moved = at(rank).step(by_clock);
    if (!moved) {
      awake_[static_cast<size_t>(rank)] = called_[static_cast<size_t>(rank)];
      events_.push({at(rank).wake_by(), rank, std::nullopt});
    }
    timing_.now += std::chrono::nanoseconds(random_.between(50, 2000));
  }
}

void Life::call(int rank) {
  awake_[static_cast<size_t>(rank)] = called_[static_cast<size_t>(rank)] = 1;
}

void Life::deliver() {
  while (!events_.empty() && events_.top().at <= timing_.now) {
    const Event event = events_.top();
    events_.pop();
    if (event.rank < 0) {
      const auto number = static_cast<size_t>(-1 - event.rank), faults = scenario_.faults.size();
      if (number < faults) {
        apply(number);
      } else {
        const auto action = later_[number - faults];  // others may be added meanwhile
        action();
      }
      continue;
    }
    awake_[static_cast<size_t>(event.rank)] = 1;
    if (!event.what) continue;
    call(event.rank);
    at(event.rank).arrived(*event.what);
  }
}

void Life::apply(size_t number) {
  const Fault& fault = scenario_.faults[number];
  Rank& rank = at(fault.rank);
  applied_[number] = 1;
  if (trace_) say(describe(fault));
  if (fault.kind == Fault::Kind::no_memory) return rank.ration(fault.allocations);
  if (fault.kind >= Fault::Kind::reset) return apply_to_wires(fault);
  if (rank.over()) return;
  switch (fault.kind) {
    case Fault::Kind::kill:
      return rank.kill();
    case Fault::Kind::pause:
      rank.pause(timing_.now + fault.lasts);
      events_.push({timing_.now + fault.lasts, fault.rank, Carries::data});
      return;
    case Fault::Kind::jump:
      call(fault.rank);
      return rank.jump(fault.lasts);
    case Fault::Kind::abort:
      call(fault.rank);
      return rank.abort();
    default:
      return rank.leave();
  }
}

void Life::apply_to_wires(const Fault& fault) {
  const auto lanes = static_cast<size_t>(scenario_.lanes);
  const size_t kind = random_.between(0, lanes);
  if (fault.kind == Fault::Kind::reset) {
    wire(fault.rank, fault.other, kind).reset();
    wire(fault.other, fault.rank, kind).reset();
  } else if (fault.kind == Fault::Kind::flip) {
    wire(fault.rank, fault.other, kind).flip_next();
  } else if (fault.kind == Fault::Kind::flip_control) {
    wire(fault.rank, fault.other, lanes + 1).flip_next();
  } else {
    swallow(fault);
  }
}

// Between two nodes nothing arrives any more, and what arrives is not acknowledged.
void Life::swallow(const Fault& fault) {
  const auto node = [&](int rank) { return scenario_.node_of_rank[static_cast<size_t>(rank)]; };
  const int p = scenario_.world_size(), kinds = scenario_.lanes + 2;
  for (int pair = 0; pair < p * p; ++pair) {
    const int a = pair / p, b = pair % p;
    if (node(a) != node(fault.rank) || node(b) != node(fault.other)) continue;
    for (size_t kind = 0; kind < static_cast<size_t>(kinds); ++kind) {
      wire(a, b, kind).start_drop();
      Wire& back = wire(b, a, kind);
      fault.both_ways ? back.start_drop() : back.start_unanswered();
    }
  }
}

void Life::say(const std::string& text) const {
  std::printf("%12.6f s  %s\n", Seconds(timing_.now - kBegin).count(), text.c_str());
}

}  // namespace hier::simulation
