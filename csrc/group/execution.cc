// The stages of a collective, piece by piece.
#include "group/execution.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "local/copy.h"

namespace hier {

namespace {

constexpr uint64_t kSymmetricWindow = 8;  // pieces in flight where no slots limit them

using State = LocalStage::State;

}  // namespace

Execution::Execution(Plan plan, const RunHeader* header, Engine* engine, LocalStage* local,
                     uint64_t digest, uint64_t run_of_lane, HostStaging* device)
    : plan_(std::move(plan)),
      header_(header),
      engine_(engine),
      local_(plan_.in_node() ? local : nullptr),
      device_(device),
      digest_(digest),
      run_of_lane_(run_of_lane),
      element_bytes_(size_of(plan_.dtype)),
      reduce_(reduce_fn(plan_.dtype, plan_.op)) {
  num_pieces_ = plan_.num_pieces();
  const uint64_t window = is_symmetric() || !local_ ? kSymmetricWindow : local_->pieces_in_flight();
  window_.resize(std::max<uint64_t>(1, std::min(window, num_pieces_)));
  if (!local_) return;
  first_number_ = local_->take(num_pieces_);
  lends_ = is_symmetric() && !plan_.program && !plan_.last && num_pieces_ > 0;
}

// What this rank ends with of a piece of a flat plan.
Range Execution::result_of(const Piece& piece) const {
  const auto [lo, hi] = plan_.result;
  const Range range = piece.range;
  if (plan_.slices == 1) return {std::max(range.lo, lo), std::min(range.hi, hi)};
  const auto slices = static_cast<size_t>(plan_.slices);
  const size_t part = plan_.count / slices, slice = range.size() / slices;
  return {range.lo + lo / part * slice, range.lo + hi / part * slice};
}

std::byte* Execution::shared(int rank, uint64_t k, int owner) const {
  const size_t begin = shard(k, owner).lo;
  if (is_symmetric()) return plan_.symmetric[rank] + begin * element_bytes_;
  return local_->slot(rank, number(k)) + (begin - piece(k).range.lo) * element_bytes_;
}

bool Execution::progress() {
  if (doubtful_) return false;
  bool moved = false;
  while (entered_ < num_pieces_ && entered_ < first_ + window_.size() && enter(entered_)) {
    ++entered_;
    moved = true;
  }
  const uint64_t end = entered_;
  for (uint64_t k = first_; k < end; ++k) {
    moved |= advance(k);
    // A peer may publish two pieces between two of our looks: the later must not overtake.
    if (k >= first_ && piece(k).phase == Phase::arrived) break;
  }
  return moved | take_back();
}

bool Execution::advance(uint64_t k) {
  bool moved = false;
  if (piece(k).phase == Phase::arrived) moved |= take(k);
  if (piece(k).phase == Phase::inter) moved |= finish_inter(k);
  if (piece(k).phase == Phase::gathering && k == first_) moved |= gather(k);
  return moved;
}

// Makes this rank's contribution to piece k readable.
bool Execution::enter(uint64_t k) {
  if (device_ && !device_->arrived(k)) return false;
  if (local_ && !is_symmetric()) {
    if (!local_->slot_free(number(k))) return false;
    local_->allocate_slot(number(k));
  }
  Piece& p = piece(k);
  p = {.range = plan_.piece_at(k)};
  p.phase = Phase::arrived;
  if (plan_.input) take_input();
  if (!local_) return start_inter(k);
  if (plan_.first && !is_symmetric()) give(k);
  if (k == 0) local_->write_header(run_of_lane_, header_, digest_);
  // In symmetric memory the whole buffer is readable at once.
  const uint64_t last = is_symmetric() ? number(num_pieces_ - 1) : number(k);
  if (k == 0 || !is_symmetric()) local_->publish(State::arrived, last);
  return true;
}

bool Execution::takes(int owner) const {
  return info(*plan_.first).after == Holders::all || owner == local_->local_rank();
}

// A shard that this rank alone reads is not copied: it reads it straight from the buffer.
void Execution::give(uint64_t k) {
  const Range whole = piece(k).range;
  const bool all_read_all = info(*plan_.first).after == Holders::all;
  const Range own = all_read_all ? Range{whole.hi, whole.hi} : shard(k, local_->local_rank());
  const auto copy = plan_.beyond_caches ? copy_from_memory : copy_within_caches;
  std::byte* slot = local_->slot(local_->local_rank(), number(k));
  copy(slot, at(whole.lo), (own.lo - whole.lo) * element_bytes_);
  copy(slot + (own.hi - whole.lo) * element_bytes_, at(own.hi),
       (whole.hi - own.hi) * element_bytes_);
}

// Symmetric memory is the callers' own, who get it back where a rank has failed.
bool Execution::doubt() {
  return doubtful_ = local_ && is_symmetric() && local_->failed().has_value();
}

// Memory of the caller's that neighbours read is the caller's again once they are done.
bool Execution::take_back() {
  if (!lends_ || first_ < num_pieces_) return false;
  lends_ = !local_->all(State::done, number(num_pieces_ - 1));
  return !lends_;
}

void Execution::compare_headers() const {
  for (int rank = 0; rank < local_->local_size(); ++rank) {
    if (local_->digest_of(rank, run_of_lane_) == digest_) continue;
    RunHeader theirs;
    std::memcpy(&theirs, local_->header_of(rank, run_of_lane_), sizeof theirs);
    if (auto wrong = disagreement(*header_, theirs, theirs.source)) throw MismatchError(*wrong);
  }
}

bool Execution::take(uint64_t k) {
  if (!local_->all(State::arrived, number(k))) return false;
  if (k == 0) compare_headers();
  if (!plan_.program && !plan_.last) {
    take_result(k);
    complete(k);
    return true;
  }
  piece(k).phase = Phase::gathering;
  if (!owner()) return true;
  take_shard(k);
  if (doubt()) return true;
  if (plan_.program) return start_inter(k);
  local_->publish(State::reduced, number(k));
  ++published_;
  return true;
}

// What this rank ends with, of a stage that is all.
void Execution::take_result(uint64_t k) {
  for (int owner = 0; owner < plan_.rails; ++owner) {
    if (!takes(owner)) continue;
    if (info(*plan_.first).reduces) {
      reduce_shard(k, owner, {at(shard(k, owner).lo)});
    } else {
      copy_shard(k, owner);
    }
  }
}

// This rank's shard, for the stages that follow.
void Execution::take_shard(uint64_t k) {
  const int me = local_->local_rank();
  std::vector<void*> outs;
  if (is_symmetric() && !plan_.program) {
    for (int rank = 0; rank < local_->local_size(); ++rank) outs.push_back(shared(rank, k, me));
    const Range own = shard(k, me);
    shared_bytes_ += own.size() * element_bytes_ * (outs.size() - 1);
  } else {
    outs.push_back(shared(me, k, me));
    if (!plan_.program) outs.push_back(at(shard(k, me).lo));
  }
  reduce_shard(k, me, std::move(outs));
}

void Execution::reduce_shard(uint64_t k, int owner, std::vector<void*> outs) {
  const Range part = shard(k, owner);
  std::vector<const void*> sources;
  for (int rank = 0; rank < local_->local_size(); ++rank) {
    const bool own = rank == local_->local_rank();
    sources.push_back(own ? at(part.lo) : shared(rank, k, owner));
  }
  const int divisor = plan_.program ? 1 : plan_.divisor;
  reduce_many(plan_.dtype, plan_.op, outs, sources, part.size(), divisor);
  shared_bytes_ += part.size() * element_bytes_ * (sources.size() - 1);
}

// Out of its owner's memory.
void Execution::copy_shard(uint64_t k, int owner) {
  const Range part = shard(k, owner);
  const bool own = owner == local_->local_rank();
  if (own && !plan_.program) return;  // it is there already
  const auto copy = plan_.beyond_caches ? copy_to_memory : copy_within_caches;
  copy(at(part.lo), shared(owner, k, owner), part.size() * element_bytes_);
  if (!own) shared_bytes_ += part.size() * element_bytes_;
}

// Of an alltoall, which is one piece.
void Execution::take_input() {
  if (plan_.relay) {
    aside_.reset(new std::byte[plan_.relay->count * element_bytes_]);
    for (const auto& [from, to, count] : plan_.relay->in) {
      std::memcpy(aside_.get() + to * element_bytes_, plan_.input + from * element_bytes_,
                  count * element_bytes_);
    }
  } else if (plan_.input == plan_.data) {
    aside_.reset(new std::byte[plan_.input_bytes]);
    std::memcpy(aside_.get(), plan_.input, plan_.input_bytes);
    plan_.input = aside_.get();
  }
  if (plan_.keep.bytes > 0) {
    std::memmove(plan_.data + plan_.keep.to, plan_.input + plan_.keep.from, plan_.keep.bytes);
  }
}

void Execution::give_output() {
  for (const auto& [from, to, count] : plan_.relay->out) {
    std::memcpy(at(to), aside_.get() + from * element_bytes_, count * element_bytes_);
  }
}

bool Execution::start_inter(uint64_t k) {
  Piece& p = piece(k);
  const int me = local_ ? local_->local_rank() : 0;
  const Range own = local_ ? shard(k, me) : p.range;
  Job job;
  job.program = plan_.program(own.size());
  job.data = local_ ? shared(me, k, me) : at(own.lo);
  job.input = plan_.input;
  if (plan_.relay) job.data = aside_.get(), job.input = nullptr;
  job.element_bytes = element_bytes_;
  job.reduce = reduce_;
  job.header = header_;
  job.opens = k == 0;
  p.ticket = engine_->submit(std::move(job));
  p.phase = Phase::inter;
  return true;
}

bool Execution::finish_inter(uint64_t k) {
  // Shards are published in order: a flag covers all earlier pieces.
  if (published_ != k || !engine_->finished(piece(k).ticket)) return false;
  ++published_;
  Piece& p = piece(k);
  if (!local_) {
    if (plan_.relay) give_output();
    const auto [lo, hi] = result_of(p);
    if (plan_.divisor > 1 && lo < hi) divide(plan_.dtype, at(lo), hi - lo, plan_.divisor);
    p.phase = Phase::gathering;
    return true;
  }
  const int me = local_->local_rank();
  const size_t own = shard(k, me).size();
  std::byte* mine = shared(me, k, me);
  if (plan_.divisor > 1) divide(plan_.dtype, mine, own, plan_.divisor);
  if (is_symmetric()) {
    for (int rank = 0; rank < local_->local_size(); ++rank) {
      if (rank == me) continue;
      std::memcpy(shared(rank, k, me), mine, own * element_bytes_);
      shared_bytes_ += own * element_bytes_;
    }
  }
  local_->publish(State::reduced, number(k));
  p.phase = Phase::gathering;
  return true;
}

// Copies the finished shards of piece k out of their owners' slots. In symmetric memory the owners
// have written them in place already.
bool Execution::gather(uint64_t k) {
  if (!local_) {
    complete(k);
    return true;
  }
  Piece& p = piece(k);
  bool moved = false;
  for (; p.owners_copied < plan_.rails; ++p.owners_copied) {
    const int owner = p.owners_copied;
    if (!local_->reached(owner, State::reduced, number(k))) return moved;
    moved = true;
    if (!is_symmetric()) copy_shard(k, owner);
  }
  complete(k);
  return true;
}

void Execution::complete(uint64_t k) {
  if (doubt()) return;
  if (local_) local_->publish(State::done, number(k));
  if (device_) device_->complete(k);
  ++first_;
}

std::optional<int> Execution::waits_for_local() const {
  if (!local_ || finished()) return std::nullopt;
  if (doubtful_) return local_->failed();
  if (entered_ == first_ && waits_for_device()) return std::nullopt;
  for (int rank = 0; rank < local_->local_size(); ++rank) {
    if (waits_for_local(rank)) return rank;
  }
  return std::nullopt;
}

bool Execution::waits_for_local(int rank) const {
  if (first_ == num_pieces_) return !local_->reached(rank, State::done, number(first_ - 1));
  if (entered_ == first_) {  // no free slot
    return !local_->reached(rank, State::done, number(first_) - local_->pieces_in_flight());
  }
  switch (piece(first_).phase) {
    case Phase::arrived:
      return !local_->reached(rank, State::arrived, number(first_));
    case Phase::gathering:
      return rank < plan_.rails && !local_->reached(rank, State::reduced, number(first_));
    default:
      return false;
  }
}

bool Execution::waits_for_device() const {
  return device_ && entered_ < num_pieces_ && entered_ < first_ + window_.size() &&
         !device_->arrived(entered_);
}

std::string Execution::describe_wait() const {
  if (finished()) return "nothing";
  if (doubtful_) return "the reason why a rank of this node has failed";
  if (first_ == num_pieces_) return "the end of the reading";
  const bool entered = entered_ > first_;
  std::string what = !entered && waits_for_device()
                         ? "the copy from the device, behind what its stream has to do first,"
                     : !entered                              ? "a free slot in shared memory"
                     : piece(first_).phase == Phase::arrived ? "the contribution"
                     : piece(first_).phase == Phase::inter   ? engine_->describe_wait()
                                                             : "the shard";
  return "piece " + std::to_string(first_) + " of " + std::to_string(num_pieces_) + ": " + what;
}

}  // namespace hier
