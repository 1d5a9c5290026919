// Drawing a life.
#include "scenario.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "schedule/registry.h"

namespace hier::simulation {

namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr size_t kMostElements = 2500;
constexpr size_t kBufferBytes = 10'048;  // of so many elements, and whole cache lines

std::vector<int> draw_layout(Random& random) {
  const int nodes = static_cast<int>(random.between(1, 3));
  std::vector<int> layout;
  for (int node = 0; node < nodes; ++node) {
    layout.insert(layout.end(), random.between(1, 3), node);
  }
  if (layout.size() < 2) layout.push_back(0);
  if (random.one_in(4)) {  // not contiguous
    for (size_t i = layout.size(); i > 1; --i)
      std::swap(layout[i - 1], layout[random.between(0, i - 1)]);
  }
  std::vector<int> order;  // nodes are numbered in the order of their first rank
  for (int& node : layout) {
    const auto found = std::find(order.begin(), order.end(), node);
    const auto number = static_cast<int>(found - order.begin());
    if (found == order.end()) order.push_back(node);
    node = number;
  }
  return layout;
}

std::vector<size_t> draw_bounds(Random& random, size_t count, int parts) {
  std::vector<size_t> bounds{0, count};
  for (int i = 1; i < parts; ++i) bounds.push_back(random.between(0, count));
  std::sort(bounds.begin(), bounds.end());
  return bounds;
}

size_t draw_count(Random& random) {
  if (random.one_in(8)) return random.between(0, 2);
  return random.one_in(3) ? random.between(1, kMostElements) : random.between(1, 200);
}

Operation draw_message(Random& random, const Scenario& s) {
  Operation op;
  op.message = true;
  op.from = static_cast<int>(random.between(0, s.node_of_rank.size() - 1));
  do {
    op.to = static_cast<int>(random.between(0, s.node_of_rank.size() - 1));
  } while (op.to == op.from);
  op.tag = static_cast<int>(random.between(0, 2));
  // Larger than what is sent at once, now and then.
  op.count = random.one_in(12) ? random.between(33 << 10, 34 << 10) : draw_count(random);
  op.hopeless = s.drains && random.one_in(6);
  if (op.hopeless) op.tag = 3;
  op.waits = !op.hopeless && random.one_in(2);
  return op;
}

Operation draw_collective(Random& random, const Scenario& s) {
  Operation op;
  const auto all = collectives();
  op.what =
      random.one_in(2) ? Collective::allreduce : all[random.between(0, all.size() - 1)].collective;
  const CollectiveInfo& what = info(op.what);
  const int p = s.world_size();
  if (op.what != Collective::barrier && random.one_in(2)) {
    op.algorithm = std::string(random.of(algorithms(op.what)).name);
  }
  op.count = op.what == Collective::barrier ? 0 : draw_count(random);
  if (what.chunks != Chunks::any) {
    const bool uneven = what.chunks == Chunks::per_rank && random.one_in(2);
    if (uneven) {
      op.bounds = draw_bounds(random, op.count, p);
    } else {
      const size_t part = op.count / static_cast<size_t>(p);
      op.count = part * static_cast<size_t>(p);
      // Sizes that are given keep an alltoall from going by node.
      if (what.chunks == Chunks::per_pair && part % 2 == 0) {
        for (size_t r = 0; r <= static_cast<size_t>(p); ++r) op.bounds.push_back(part * r);
      }
    }
  }
  if (what.rooted) op.root = static_cast<int>(random.between(0, static_cast<size_t>(p) - 1));
  op.fresh = op.what == Collective::alltoall || !random.one_in(4);
  op.waits = random.one_in(2);
  if (what.reduces && random.one_in(40))
    op.stranger = static_cast<int>(random.between(0, static_cast<size_t>(p) - 1));
  return op;
}

// Receives that come behind the next call: of another message, or of none.
void postpone_some(Random& random, Scenario& s) {
  for (size_t i = 0; i + 1 < s.operations.size(); ++i) {
    Operation& op = s.operations[i];
    const Operation& next = s.operations[i + 1];
    const bool alike =
        next.message && next.from == op.from && next.to == op.to && next.tag == op.tag;
    const bool after_late = i > 0 && s.operations[i - 1].late;
    if (!op.message || op.hopeless || alike || after_late || !random.one_in(2)) continue;
    op.late = true;
    op.waits = false;
  }
}

Fault draw_fault(Random& random, const Scenario& s) {
  Fault fault;
  const auto last = static_cast<size_t>(s.world_size()) - 1;
  fault.kind = static_cast<Fault::Kind>(random.between(0, 8));
  fault.rank = static_cast<int>(random.between(0, last));
  fault.other = static_cast<int>(random.between(0, last));
  const bool apart = s.node_of_rank[fault.rank] != s.node_of_rank[fault.other];
  if (fault.kind >= Fault::Kind::reset && !apart) fault.kind = Fault::Kind::kill;
  if (fault.kind >= Fault::Kind::flip && !s.checksum) fault.kind = Fault::Kind::pause;
  fault.both_ways = random.one_in(2);
  const auto latest = static_cast<size_t>(
      std::chrono::duration_cast<microseconds>(s.most_delay).count() * 20 + 2000);
  fault.at = microseconds(random.between(0, random.one_in(2) ? latest : latest / 8));
  fault.lasts =
      milliseconds(random.one_in(3) ? random.between(1, 400'000) : random.between(1, 900));
  return fault;
}

// By chance of its own, so that lives without it stay as they were.
Fault draw_lack_of_memory(uint64_t seed, const Scenario& s) {
  Random random(seed);
  Fault fault;
  fault.kind = Fault::Kind::no_memory;
  fault.rank = static_cast<int>(random.between(0, static_cast<size_t>(s.world_size()) - 1));
  fault.at = microseconds(random.between(0, 500));
  fault.allocations = static_cast<int64_t>(random.between(0, random.one_in(2) ? 4 : 40));
  return fault;
}

}  // namespace

Scenario draw(uint64_t seed) {
  Random random(seed * 0xd1342543de82ef95 + 1);
  Scenario s;
  s.seed = seed;
  s.node_of_rank = draw_layout(random);
  s.lanes = static_cast<int>(random.between(1, 3));
  s.rails = static_cast<int>(random.between(0, 2));
  s.hierarchical = !random.one_in(6);
  s.checksum = !random.one_in(6);
  s.symmetric = random.one_in(3);
  s.drains = random.one_in(2);
  s.segment_bytes = random.of<size_t>({64, 256, 1 << 10, 1 << 14});
  const bool one_node = std::ranges::max(s.node_of_rank) == 0;
  s.slot_bytes = one_node && random.one_in(2) ? 1 << 9 : 1 << 12;  // nodes agree on pieces
  s.ring_bytes = random.of<size_t>({1 << 8, 1 << 12});
  s.one_shot_bytes = random.of<size_t>({0, 1 << 9});
  s.one_rail_bytes = random.of<size_t>({0, 1 << 10});
  s.most_delay = random.of<Clock::duration>({microseconds(1), microseconds(200), milliseconds(40)});
  s.capacity = random.of<size_t>({200, 1 << 12, 1 << 16});
  s.num_buffers = static_cast<int>(random.between(1, 3));
  for (size_t i = random.between(1, 7); i > 0; --i) {
    Operation op = random.one_in(4) ? draw_message(random, s) : draw_collective(random, s);
    op.buffer = static_cast<int>(random.between(0, static_cast<size_t>(s.num_buffers) - 1));
    s.operations.push_back(std::move(op));
  }
  postpone_some(random, s);
  if (!random.one_in(3)) s.faults.push_back(draw_fault(random, s));
  if (random.one_in(8)) s.faults.push_back(draw_fault(random, s));
  if (seed % 16 == 0) s.faults.push_back(draw_lack_of_memory(seed, s));
  // Likewise.
  s.on_demand = seed % 8 == 1 || seed % 8 == 3;
  s.sparse = seed % 8 == 3;
  s.ring = seed % 16 == 3;
  return s;
}

size_t Scenario::symmetric_bytes() const { return static_cast<size_t>(num_buffers) * kBufferBytes; }

// As links_of() in allreduce/rendezvous/mesh_builder.py, or fewer, for there are few ranks.
bool Scenario::linked(int a, int b) const {
  if (!sparse || node_of_rank[a] == node_of_rank[b]) return true;
  const auto distance = static_cast<unsigned>(std::abs(a - b));
  if (ring) return distance == 1 || distance == static_cast<unsigned>(world_size()) - 1;
  return std::has_single_bit(distance) ||
         std::has_single_bit(static_cast<unsigned>(world_size()) - distance);
}

bool Scenario::has_stranger() const {
  return std::ranges::any_of(operations, [](const Operation& op) { return op.stranger >= 0; });
}

std::string describe(const Operation& op) {
  std::string text = op.message ? "message " + std::to_string(op.from) + " to " +
                                      std::to_string(op.to) + ", tag " + std::to_string(op.tag)
                                : std::string(name_of(op.what)) + " by " + op.algorithm +
                                      ", root " + std::to_string(op.root);
  text += ", " + std::to_string(op.count) + " elements in buffer " + std::to_string(op.buffer);
  if (!op.bounds.empty()) text += ", parts of given sizes";
  if (!op.fresh) text += ", of what is there";
  if (op.hopeless) text += ", never sent";
  if (op.late) text += ", received behind the next call";
  if (op.stranger >= 0)
    text += ", rank " + std::to_string(op.stranger) + " calls another reduction";
  return text + (op.waits ? "" : ", in the background");
}

std::string describe(const Fault& fault) {
  static const char* const kNames[] = {"kill",
                                       "pause",
                                       "abort",
                                       "leave",
                                       "jump of the clock",
                                       "reset",
                                       "black hole",
                                       "flip",
                                       "flip on a control link",
                                       "no memory"};
  std::string text =
      std::string(kNames[static_cast<int>(fault.kind)]) + ": rank " + std::to_string(fault.rank);
  if (fault.kind == Fault::Kind::no_memory) {
    text += ", " + std::to_string(fault.allocations) + " allocations";
  } else if (fault.kind >= Fault::Kind::reset) {
    text += " and " + std::to_string(fault.other);
  }
  if (fault.kind == Fault::Kind::black_hole) text += fault.both_ways ? ", both ways" : ", one way";
  text += " after " + std::to_string(Seconds(fault.at).count()) + " s";
  if (fault.kind == Fault::Kind::pause || fault.kind == Fault::Kind::jump) {
    text += ", for " + std::to_string(Seconds(fault.lasts).count()) + " s";
  }
  return text;
}

}  // namespace hier::simulation
