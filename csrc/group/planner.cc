// From a call to a plan: algorithm, pieces, symmetric memory.
#include "group/planner.h"

#include <algorithm>

#include "base/error.h"
#include "group/check.h"
#include "group/parts.h"
#include "schedule/registry.h"
#include "schedule/stages.h"

namespace hier {

namespace {

constexpr size_t kSymmetricPiece = 1 << 20;  // bytes, where the network follows
constexpr size_t kRelayedPart = 4 << 10;     // bytes from rank to rank; larger ones go straight
constexpr size_t kDevicePiece = 4 << 20;     // bytes; a copy takes 80 us over PCIe 5
constexpr size_t kDeviceSlice = 512 << 10;   // bytes, at least: each slice is copied by itself
// All buffers of a node. (On 2 Xeon cores less than 64 MiB stay in the third cache: written past
// it, 4 ranks with 4 MiB each take 1.3 times the time, with 100 MiB 0.94; 16 ranks with 16 MiB
// 0.83.)
constexpr size_t kBeyondCaches = 128 << 20;

uint32_t mix(uint32_t hash, uint64_t value) {  // FNV-1a over the bytes of value
  for (int i = 0; i < 8; ++i) {
    hash = (hash ^ static_cast<uint32_t>((value >> (8 * i)) & 0xff)) * 16777619u;
  }
  return hash;
}

// The result takes the place of an array of the same shape. Elsewhere the parts are what counts.
bool one_shape(Collective collective) {
  return collective == Collective::allreduce || collective == Collective::broadcast ||
         collective == Collective::reduce;
}

bool same_but_for_place(const Call& a, const Call& b) {
  return a.collective == b.collective && a.count == b.count && a.dtype == b.dtype && a.op == b.op &&
         a.root == b.root && a.name_hash == b.name_hash && a.shape == b.shape &&
         a.algorithm == b.algorithm && a.device.has_value() == b.device.has_value();
}

}  // namespace

void Planner::set_choices(std::vector<Choice> choices) {
  const std::lock_guard lock(mutex_);
  choices_ = std::move(choices);
  known_ = {};
  ++generation_;
}

void Planner::add_schedule(const std::string& name, Collective collective, Schedule schedule,
                           int root) {
  programs_.add(name, collective, std::move(schedule), root);
  const std::lock_guard lock(mutex_);
  known_ = {};
  ++generation_;
}

std::string Planner::choose(Collective collective, size_t bytes) const {
  const std::lock_guard lock(mutex_);
  for (const Choice& choice : choices_) {
    if (choice.collective == collective && bytes <= choice.max_bytes) return choice.algorithm;
  }
  const int ranks = may_go_by_node(collective) ? topology_.num_nodes : topology_.world_size;
  return std::string(choose_unmeasured(collective, bytes, ranks));
}

// Whether the ranks of a node work together, and the algorithm runs between nodes alone.
bool Planner::may_go_by_node(Collective collective) const {
  return config_.hierarchical && topology_.num_nodes > 1 &&
         topology_.world_size > topology_.num_nodes && !stages_of(collective).empty();
}

// An alltoall that does is relayed: what passes through other ranks costs copies, which pays while
// messages are what takes long. All sizes have to be known, so that parts are even.
bool Planner::goes_by_node(const Call& call) const {
  if (!may_go_by_node(call.collective)) return false;
  return call.collective != Collective::alltoall ||
         (call.bounds.empty() && call.input_bounds.empty() && call.count > 0 &&
          call.bytes() <= kRelayedPart * topology_.world_size);
}

// Ranks of a node that talk to other nodes, for a buffer of so many bytes.
int Planner::rails(size_t bytes) const {
  return topology_.num_nodes > 1 && bytes <= config_.one_rail_bytes ? 1 : most_rails();
}

int Planner::most_rails() const {
  return config_.rails > 0 ? std::min(config_.rails, topology_.smallest_node)
                           : topology_.smallest_node;
}

// Options that decide who sends what to whom: ranks that differ in them must not go on.
uint32_t Planner::options_hash() const {
  uint32_t hash = 2166136261u;
  for (const uint64_t option :
       {uint64_t{config_.hierarchical}, static_cast<uint64_t>(config_.rails),
        uint64_t{config_.one_shot_bytes}, uint64_t{config_.one_rail_bytes},
        uint64_t{config_.segment_bytes}}) {
    hash = mix(hash, option);
  }
  return hash;
}

void Planner::fill_header(RunHeader& header, const Call& call, const std::string& algorithm,
                          uint32_t fingerprint) const {
  header.collective = call.collective;
  header.op = call.op;
  header.dtype = call.dtype;
  header.root = call.root;
  header.extra = mix(options_hash(), call.name_hash);
  if (one_shape(call.collective)) header.extra = mix(header.extra, call.shape);
  if (call.collective != Collective::alltoall) {  // where each rank has its own amounts
    header.count = call.count;
    for (size_t bound : call.bounds) header.extra = mix(header.extra, bound);
  }
  header.set_algorithm(algorithm);
  if (fingerprint != 0) header.extra = mix(header.extra, fingerprint);
  header.group_id = config_.group_id;
  header.generation = config_.generation;
  header.source = static_cast<uint16_t>(topology_.rank);
}

// Kernels take aligned memory alone: a call that reduces other memory works on a copy. What only
// moves is moved as bytes.
std::unique_ptr<Run> Planner::make_run(Call call, Clock::time_point now, double timeout) {
  check_memory(call, topology_.rank);
  if (info(call.collective).chunks == Chunks::per_rank &&
      are_even(call.bounds, call.count, topology_.world_size)) {
    call.bounds.clear();
  }
  auto run = std::make_unique<Run>();
  void* const place = call.data;
  if (info(call.collective).reduces && !is_aligned(place, size_of(call.dtype))) {
    constexpr size_t kUnit = sizeof(std::max_align_t);
    const size_t units = (call.bytes() + kUnit - 1) / kUnit;
    run->aligned = std::make_unique_for_overwrite<std::max_align_t[]>(units);
    call.data = run->aligned.get();
  }
  run->plan = plan(call, run->header);
  run->begun = now;
  run->deadline = after(call.timeout < 0 ? timeout : call.timeout, now);
  call.data = place;
  run->call = std::move(call);
  return run;
}

Plan Planner::plan(const Call& call, RunHeader& header) {
  Plan plan;
  const bool repeats = call.bounds.empty() && call.collective != Collective::alltoall;
  uint64_t generation = 0;
  if (!repeats || !recall(call, plan, header, generation)) {
    check_call(call, topology_.world_size);
    plan = new_plan(call, header);
    if (repeats) remember(call, plan, header, generation);
  }
  plan.data = static_cast<std::byte*>(call.data);
  if (plan.place_matters) place(plan, call, header.extra);
  return plan;
}

// A loop makes the same calls again and again: all but the buffer's place is known then.
std::optional<Planner::Known>& Planner::known_place(const Call& call) {
  const uint32_t hash = mix(mix(static_cast<uint32_t>(call.dtype), call.count), call.name_hash);
  return known_[hash % known_.size()];
}

bool Planner::recall(const Call& call, Plan& plan, RunHeader& header, uint64_t& generation) {
  const std::lock_guard lock(mutex_);
  generation = generation_;
  const auto& known = known_place(call);
  if (!known || !same_but_for_place(known->call, call)) return false;
  plan = known->plan;
  header = known->header;
  return true;
}

void Planner::remember(const Call& call, const Plan& plan, const RunHeader& header,
                       uint64_t generation) {
  const std::lock_guard lock(mutex_);
  if (generation != generation_) return;  // planned with what was replaced meanwhile
  auto& known = known_place(call).emplace(Known{call, plan, header});
  known.call.use = nullptr;
}

Plan Planner::new_plan(const Call& call, RunHeader& header) {
  const size_t bytes = call.bytes();
  const bool automatic = call.algorithm.empty() || call.algorithm == "auto";
  const bool over_nodes =
      config_.hierarchical && topology_.world_size > topology_.num_nodes &&
      (call.collective == Collective::allreduce || call.collective == Collective::barrier);
  // Where there is a local stage, a barrier is an allreduce of one byte: two flags inside a node.
  const Collective as = over_nodes ? Collective::allreduce : call.collective;
  const std::string algorithm =
      automatic ? choose(as, bytes) : std::string(resolve_alias(call.algorithm));
  const bool staged = over_nodes && !runs_over_all(call);
  const bool one_node = topology_.num_nodes == 1;
  // Looked for on one node too: fails early, in words, for an algorithm that does not exist.
  const Named schedule =
      staged
          ? programs_.find(as, algorithm, one_node ? topology_.world_size : topology_.num_nodes, 0)
          : between_all(call, algorithm);
  fill_header(header, call, algorithm, schedule.fingerprint);
  if (staged) return staged_plan(call, schedule);
  if (call.collective == Collective::alltoall) {
    const bool relayed = goes_by_node(call) && !runs_over_all(call);
    if (relayed) header.extra = mix(header.extra, 1);  // others may call with split sizes
    return alltoall_plan(call, schedule, relayed);
  }
  return flat_plan(call, schedule, header.extra);
}

// What a collective runs between all ranks: node by node, where that spares the network.
Named Planner::between_all(const Call& call, const std::string& algorithm) {
  if (auto own = programs_.own_over_all(call.collective, algorithm, call.root)) return *own;
  if (!goes_by_node(call)) {
    return programs_.find(call.collective, algorithm, topology_.world_size, call.root);
  }
  const int node = topology_.node_of_rank[call.root];
  const Named between = programs_.find(call.collective, algorithm, topology_.num_nodes, node);
  // Shards of a reduce would have to be gathered at the root again: whole buffers reach it sooner.
  const int rails = call.collective == Collective::reduce ? 1 : this->rails(call.bytes());
  return programs_.by_node(call.collective, between, rails, call.root);
}

// The plan of an allreduce with a local stage; it holds the schedule that its header names.
Plan Planner::staged_plan(const Call& call, const Named& between) {
  const size_t element = size_of(call.dtype), bytes = call.bytes();
  const bool one_node = topology_.num_nodes == 1;
  Plan plan;
  plan.count = call.count;
  plan.dtype = call.dtype;
  plan.op = call.op;
  plan.divisor = call.op == ReduceOp::avg ? topology_.world_size : 1;
  plan.result.hi = call.count;
  plan.piece = std::max<size_t>(1, call.count);
  if (one_node && bytes <= config_.one_shot_bytes) {
    plan.first = Collective::allreduce;
    return plan;
  }
  plan.rails = rails(bytes);
  plan.place_matters = true;
  if (topology_.local_size > 1) {
    plan.first = Collective::reduce_scatter;
    plan.last = Collective::allgather;
  }
  if (!one_node) {
    plan.program = [this, between, element](size_t count) {
      return programs_.rail(between, count, element);
    };
  }
  return plan;
}

// Symmetric memory is worked on where it lies. Elsewhere an allreduce passes through slots, piece
// by piece, and the parts of a collective that has some through the rings of its program.
void Planner::place(Plan& plan, const Call& call, uint32_t& place_hash) {
  const size_t element = size_of(call.dtype), bytes = call.count * element;
  const bool one_node = topology_.num_nodes == 1;
  const bool has_parts = info(call.collective).chunks == Chunks::per_rank;
  if (auto found = symmetric_.find(call.data, bytes, topology_.local_rank, topology_.local_size)) {
    // All ranks of a node must mean the same place, or they would work on different buffers.
    place_hash = mix(mix(place_hash, found->number), found->offset);
    plan.symmetric = std::move(found->of_ranks);
    if (!one_node) plan.piece = kSymmetricPiece / element;
    if (has_parts) work_on_parts(plan, call);
    return;
  }
  if (has_parts) return;
  plan.beyond_caches = bytes * topology_.local_size >= kBeyondCaches;
  // Inside a node a piece fills a slot. Between nodes pieces are cut alike, whatever their cores,
  // and small ones smaller, for the network to begin early.
  const size_t overlapping = std::max(config_.smallest_piece_bytes, bytes / 4 / 4096 * 4096);
  plan.piece = (one_node ? slot_bytes_ : std::min(ArenaLayout::kSlotBytes, overlapping)) / element;
  if (one_node && topology_.world_size == 2) {
    // They read as much of each other either way, and meet once for a piece in place of twice.
    plan.first = Collective::allreduce;
    plan.last.reset();
    plan.rails = 1;
  }
}

// One stage inside the node in place of the program.
void Planner::work_on_parts(Plan& plan, const Call& call) const {
  plan.first = call.collective;
  plan.program = nullptr;
  plan.rails = topology_.local_size;
  plan.parts = parts_of(call.bounds, call.count, topology_.world_size);
}

Plan Planner::flat_plan(const Call& call, const Named& schedule, uint32_t& place_hash) {
  Plan plan;
  plan.count = call.count;
  plan.dtype = call.dtype;
  plan.op = call.op;
  plan.piece = std::max<size_t>(1, call.count);
  const CollectiveInfo& collective = info(call.collective);
  if (collective.reduces && call.op == ReduceOp::avg) plan.divisor = topology_.world_size;
  plan.result = range_of(collective.after, call.bounds, call.count, topology_.rank, call.root,
                         topology_.world_size);
  plan.place_matters =
      config_.hierarchical && topology_.num_nodes == 1 && topology_.local_size > 1 &&
      !runs_over_all(call) &&
      (call.collective == Collective::reduce_scatter || call.collective == Collective::allgather);
  if (call.device && call.bounds.empty() && call.bytes() > kDevicePiece) {
    cut_for_device(plan, call, schedule, place_hash);
  } else {
    plan.program = [program = programs_.full(call, schedule)](size_t) { return program; };
  }
  return plan;
}

// Cut so that copies from and to the device and the network work at once: anywhere, but where each
// rank has a part across all of them. (Uneven parts stay whole.)
void Planner::cut_for_device(Plan& plan, const Call& call, const Named& schedule,
                             uint32_t& place_hash) {
  const size_t element = size_of(call.dtype);
  if (info(call.collective).chunks == Chunks::per_rank) plan.slices = topology_.world_size;
  const auto slices = static_cast<size_t>(plan.slices);
  plan.piece = std::max(kDevicePiece / slices, kDeviceSlice) / element * slices;
  place_hash = mix(place_hash, plan.piece);  // a rank without a device would cut nothing
  Call part = call;
  part.use = nullptr;
  plan.program = [this, part, schedule](size_t count) mutable {
    part.count = count;
    return programs_.full(part, schedule);
  };
}

Plan Planner::between_devices(const Call& call, size_t slot_bytes) const {
  Plan plan;
  plan.count = call.count;
  plan.rails = topology_.num_nodes == 1 ? topology_.local_size : most_rails();
  // All but the last piece have shards of piece / rails elements.
  const size_t unit = 16 * static_cast<size_t>(plan.rails);
  plan.piece = slot_bytes / size_of(call.dtype) / unit * unit;
  return plan;
}

// Sends read the input, receives write the output, and what a rank keeps is copied before them. By
// node all pass through memory of the execution's own.
Plan Planner::alltoall_plan(const Call& call, const Named& schedule, bool relayed) {
  const int p = topology_.world_size, me = topology_.rank;
  const auto in = parts_of(call.input_bounds, call.input_count, p);
  const auto out = parts_of(call.bounds, call.count, p);
  const size_t element = size_of(call.dtype), kept = in[me + 1] - in[me];
  if (kept != out[me + 1] - out[me]) {
    throw UsageError("alltoall: rank " + std::to_string(me) + " sends itself " +
                     std::to_string(kept) + " elements, and expects " +
                     std::to_string(out[me + 1] - out[me]) + " from itself");
  }
  Plan plan;
  plan.input = static_cast<const std::byte*>(call.input);
  plan.input_bytes = call.input_count * element;
  plan.keep = {in[me] * element, out[me] * element, kept * element};
  plan.count = plan.piece = 1;  // not cut into pieces
  plan.dtype = call.dtype;
  plan.op = call.op;
  if (relayed) {
    plan.relay = programs_.relay(schedule, rails(call.bytes()), element, in[1]);
    plan.program = [relay = plan.relay](size_t) {
      return std::shared_ptr<const Program>(relay, &relay->program);
    };
  } else {
    plan.program = [program = programs_.alltoall(schedule, element, in, out)](size_t) {
      return program;
    };
  }
  return plan;
}

}  // namespace hier
