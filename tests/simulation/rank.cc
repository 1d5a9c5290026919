// What a process does with its group.
#include "rank.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace hier::simulation {

namespace {

constexpr Value kScribble = 0x55555555;

GroupConfig config_of(const Scenario& s, int rank) {
  GroupConfig config;
  config.rank = rank;
  config.node_of_rank = s.node_of_rank;
  config.group_id = 7;
  config.lanes = s.lanes;
  config.timeout = s.timeout;
  config.hierarchical = s.hierarchical;
  config.rails = s.rails;
  config.segment_bytes = s.segment_bytes;
  config.smallest_piece_bytes = 1 << 9;
  config.one_shot_bytes = s.one_shot_bytes;
  config.one_rail_bytes = s.one_rail_bytes;
  config.checksum = s.checksum;
  for (const int node : s.node_of_rank) config.hosts.push_back("host" + std::to_string(node));
  return config;
}

}  // namespace

Rank::Rank(const Scenario& scenario, const Model& model, Timing& timing, Random& random, int rank,
           Links links, const SharedMemory& shared, std::function<void(int rank)> ring)
    : scenario_(scenario),
      model_(model),
      timing_(timing),
      random_(random),
      rank_(rank),
      config_(config_of(scenario, rank)),
      topology_(rank, scenario.node_of_rank),
      arena_(shared.arena),
      buffers_(scenario.num_buffers + scenario.operations.size()),
      inputs_(scenario.operations.size()) {
  size_t slot_bytes = ArenaLayout::kSlotBytes;
  if (arena_) {
    bells_ = SimulatedBells(arena_->sleep_words(), topology_, std::move(ring));
    slot_bytes = arena_->layout().slot_bytes;
    for (int i = 0; i < config_.lanes; ++i) {
      open_rings(*arena_, i, topology_, bells_, links.lanes[i]);
    }
    open_rings(*arena_, config_.lanes, topology_, bells_, links.messages);
  }
  planner_ = std::make_unique<Planner>(config_, topology_, slot_bytes);
  member_ = std::make_unique<Member>(config_, topology_, std::move(links), arena_, &bells_, [] {});
  lay_out(shared.symmetric);
  for (Buffer& buffer : buffers_) scribble(buffer);
  made_.reserve(scenario.operations.size());
}

void Rank::lay_out(const std::shared_ptr<SharedMapping>& symmetric) {
  const auto parts = static_cast<size_t>(scenario_.num_buffers);
  const size_t bytes = scenario_.symmetric_bytes();
  if (symmetric) planner_->symmetric().add(symmetric, bytes);
  std::vector<size_t> counts(buffers_.size(), 0);
  for (size_t i = 0; i < scenario_.operations.size(); ++i) {
    auto& count = counts[static_cast<size_t>(&buffer_of(i) - buffers_.data())];
    count = std::max(count, scenario_.operations[i].count);
  }
  for (size_t i = 0; i < buffers_.size(); ++i) {
    Buffer& buffer = buffers_[i];
    if (symmetric && i < parts) {
      std::byte* mine = symmetric->data() + bytes * static_cast<size_t>(topology_.local_rank);
      buffer.memory = {reinterpret_cast<Value*>(mine + bytes / parts * i), counts[i]};
    } else {
      buffer.own.resize(counts[i]);
      buffer.memory = buffer.own;
    }
  }
}

Rank::Buffer& Rank::buffer_of(size_t number) {
  const Operation& op = scenario_.operations[number];
  return buffers_[op.message ? scenario_.num_buffers + number : static_cast<size_t>(op.buffer)];
}

void Rank::scribble(Buffer& buffer) {
  std::fill(buffer.memory.begin(), buffer.memory.end(), kScribble);
  buffer.scribbled = true;
}

void Rank::arrived(Carries what) {
  arrivals_.messages |= what == Carries::messages;
  arrivals_.control |= what == Carries::control;
}

// What its own clock says.
Clock::time_point Rank::now() const { return timing_.now + ahead_; }

bool Rank::step(bool by_clock) {
  by_clock &= std::exchange(asleep_, false);
  bells_.woke_up();
  wake_by_ = timing_.now + std::chrono::seconds(1);
  bool done = collect();
  done |= use();
  if (member_ && member_->in_flight() > 0) return drive(by_clock && !done) || done;
  if (member_ && scenario_.sparse && std::exchange(arrivals_.control, false)) {
    member_->pass_on();  // as the connector's thread does
    done = true;
  }
  return done;
}

// As Driver does with an error that leaves the member.
bool Rank::drive(bool by_clock) {
  const Rationed rationed(allocations_left_);
  try {
    return take_turn(by_clock);
  } catch (const Wrong&) {
    throw;
  } catch (...) {
    member_->end(std::current_exception());
    return true;
  }
}

// As Driver does: turns while anything moves, and before it sleeps one step.
bool Rank::take_turn(bool by_clock) {
  if (by_clock && member_->turn() && !member_->failure().is_set()) {
    throw Wrong("rank " + std::to_string(rank_) + " slept while there was something to do");
  }
  if (now() - member_->looked() >= std::chrono::seconds(1)) arrivals_.control = true;
  if (!random_.one_in(3) && member_->turn()) return true;
  bells_.prepare_to_sleep();
  const Progress progress = member_->step(now(), std::exchange(arrivals_, {}));
  if (progress.moved) {
    bells_.woke_up();
    return true;
  }
  asleep_ = true;
  wake_by_ = progress.wake_by - ahead_;
  return false;
}

// The program: the next call, once what it has to wait for has ended.
bool Rank::use() {
  if (!member_ || waits()) return false;
  if (random_.one_in(4)) return true;  // it does something else
  if (next_ == scenario_.operations.size()) return say_goodbye();
  const Operation& op = scenario_.operations[next_];
  const bool next = next_ + 1 < scenario_.operations.size();
  if (op.late && next && op.to == rank_ && postponed_ != next_) {  // the call behind it goes first
    postponed_ = next_++;
    return true;
  }
  if (!make(next_)) return false;
  ++next_;
  if (!postponed_) return true;
  const size_t late = *std::exchange(postponed_, std::nullopt);
  return make(late);
}

// For a call that its caller waits in.
bool Rank::waits() const {
  return std::any_of(
      made_.begin() + static_cast<std::ptrdiff_t>(collected_), made_.end(),
      [&](const Made& made) { return !made.ended && scenario_.operations[made.operation].waits; });
}

// As destroy_process_group() does, or as a communicator is closed.
bool Rank::say_goodbye() {
  if (scenario_.drains && drained_ == 0) {
    member_->drain();
    ++drained_;
    drain_until_ = timing_.now + std::chrono::seconds(300);
    return true;
  }
  if (collected_ < made_.size()) return false;
  const bool late = timing_.now >= drain_until_;  // a neighbour has died: its ring stays full
  const bool flushed = drained_ > 1 && (late || member_->drained() || member_->failure().is_set());
  if (scenario_.drains && !flushed) {
    ++drained_;
    return member_->turn() || drained_ < 3;
  }
  leave();
  return true;
}

bool Rank::in_use(int buffer) const {
  return std::any_of(made_.begin() + static_cast<std::ptrdiff_t>(collected_), made_.end(),
                     [&](const Made& made) {
                       const Operation& op = scenario_.operations[made.operation];
                       return !made.ended && !op.message && op.buffer == buffer;
                     });
}

bool Rank::make(size_t number) {
  const Operation& op = scenario_.operations[number];
  const bool concerned = !op.message || (op.from == rank_ && !op.hopeless) || op.to == rank_;
  if (!concerned) return true;
  Buffer& buffer = buffer_of(number);
  if (op.fresh && !op.message && in_use(op.buffer)) return false;
  if (op.fresh && !(op.message && op.to == rank_)) {
    const auto input = model_.input(number, rank_);
    if (op.what == Collective::alltoall && !op.message) {
      inputs_[number] = input;
    } else {
      std::copy(input.begin(), input.end(), buffer.memory.begin());
    }
  }
  buffer.scribbled = false;
  Made made{number, nullptr, timing_.now, std::nullopt, nullptr};
  try {
    member_->failure().check();
    made.work = op.message ? post(op, number) : call(op, number);
  } catch (...) {
    made.error = std::current_exception();
    made.ended = timing_.now;
  }
  made_.push_back(std::move(made));
  return true;
}

// As Group::start does.
std::shared_ptr<Work> Rank::call(const Operation& op, size_t number) {
  Call call;
  call.collective = op.what;
  call.data = buffer_of(number).memory.data();
  call.count = op.count;
  call.bounds = op.bounds;
  call.dtype = DType::i32;
  call.root = op.root;
  if (op.stranger == rank_) call.op = ReduceOp::max;
  call.algorithm = op.algorithm;
  if (op.what == Collective::alltoall) {
    call.input = inputs_[number].data();
    call.input_count = op.count;
    call.input_bounds = op.bounds;
  }
  const auto ranges = ranges_of(call);
  const auto use = call.use = std::make_shared<MemoryUse>();
  use->earlier = order_.uses_of(ranges);
  auto run = planner_->make_run(std::move(call), now(), scenario_.timeout);
  auto work = run->work;
  numbers_.number(*run);
  ++member_->in_flight();
  member_->accept(std::move(run));
  order_.publish(use, ranges);
  return work;
}

std::shared_ptr<Work> Rank::post(const Operation& op, size_t number) {
  Message message;
  message.send = op.from == rank_;
  message.peer = message.send ? op.to : op.from;
  message.tag = op.tag;
  message.data = buffer_of(number).memory.data();
  message.count = op.count;
  message.dtype = DType::i32;
  auto work = make_work();
  auto transfer = member_->make_transfer(message, work, now(), scenario_.timeout);
  ++member_->in_flight();
  member_->accept({std::move(transfer)});
  return work;
}

bool Rank::collect() {
  bool any = false;
  for (Made& made : made_) {
    if (made.ended || !made.work->done()) continue;
    any = true;
    made.ended = timing_.now;
    made.error = made.work->error();
    ended(made);
  }
  while (collected_ < made_.size() && made_[collected_].ended) ++collected_;
  return any;
}

// The caller has its buffer back: it looks at the result, and uses the memory for something else.
void Rank::ended(Made& made) {
  const Operation& op = scenario_.operations[made.operation];
  const bool last = std::none_of(made_.begin(), made_.end(), [&](const Made& other) {
    const Operation& later = scenario_.operations[other.operation];
    return other.operation > made.operation && !later.message && !op.message &&
           later.buffer == op.buffer;
  });
  if (!last || (!op.message && in_use(op.buffer))) return;
  if (!made.error) check(made);
  bool chained = false;
  for (size_t i = made.operation + 1; i < scenario_.operations.size() && !op.message; ++i) {
    const Operation& later = scenario_.operations[i];
    if (later.message || later.buffer != op.buffer) continue;
    chained = !later.fresh;
    break;
  }
  // After an error neighbours that have not heard of it may still write into symmetric memory.
  const bool shared = scenario_.symmetric && !op.message;
  if (made.error ? !shared : !chained) scribble(buffer_of(made.operation));
}

void Rank::check(const Made& made) const {
  const Contents& expected = model_.after(made.operation, rank_);
  const auto memory = const_cast<Rank*>(this)->buffer_of(made.operation).memory;
  for (size_t i = 0; i < expected.values.size(); ++i) {
    if (!expected.defined[i] || memory[i] == expected.values[i]) continue;
    throw Wrong("rank " + std::to_string(rank_) + " has " + std::to_string(memory[i]) +
                " and not " + std::to_string(expected.values[i]) + " at element " +
                std::to_string(i) + " after call " + std::to_string(made.operation));
  }
}

std::string Rank::check_memory() const {
  for (const Buffer& buffer : buffers_) {
    if (!buffer.scribbled) continue;
    if (std::ranges::all_of(buffer.memory, [](Value value) { return value == kScribble; }))
      continue;
    return "memory of rank " + std::to_string(rank_) + " was written after its call had ended";
  }
  return "";
}

void Rank::abort() {
  member_->fail(
      std::make_exception_ptr(AbortedError("rank " + std::to_string(rank_) + " gave up")));
  arrivals_.control = true;
}

// As Group::close does, with what Driver does for it.
void Rank::leave() {
  if (const size_t count = member_->in_flight(); count > 0) {
    const std::string text = "closed with " + std::to_string(count) + " in flight";
    member_->failure().set(std::make_exception_ptr(AbortedError(text)), text, [] {});
    member_->step(now(), {});
    if (member_->in_flight() != 0) throw Wrong("something is in flight after a failure");
  }
  collect();
  next_ = scenario_.operations.size();
  member_->leave();
  member_.reset();
}

void Rank::kill() {
  killed_ = true;
  member_.reset();
}

}  // namespace hier::simulation
