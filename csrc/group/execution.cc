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
      local_(plan_.local ? local : nullptr),
      device_(device),
      digest_(digest),
      run_of_lane_(run_of_lane),
      element_bytes_(size_of(plan_.dtype)),
      reduce_(reduce_fn(plan_.dtype, plan_.op)) {
  num_pieces_ = plan_.num_pieces();
  const uint64_t window = is_symmetric() || !local_ ? kSymmetricWindow : local_->pieces_in_flight();
  window_.resize(std::max<uint64_t>(1, std::min(window, num_pieces_)));
  if (local_) first_number_ = local_->take(num_pieces_);
}

LocalShard Execution::shard(const Piece& piece, int owner) const {
  const LocalShard own = local_shard_of(piece.end - piece.begin, plan_.rails, owner);
  return {piece.begin + own.begin, own.count};
}

// What this rank ends with of a piece of a flat plan.
Range Execution::result_of(const Piece& piece) const {
  const auto [lo, hi] = plan_.result;
  if (plan_.slices == 1) return {std::max(piece.begin, lo), std::min(piece.end, hi)};
  const auto slices = static_cast<size_t>(plan_.slices);
  const size_t part = plan_.count / slices, slice = (piece.end - piece.begin) / slices;
  return {piece.begin + lo / part * slice, piece.begin + hi / part * slice};
}

std::byte* Execution::shared(int rank, uint64_t k, size_t element) const {
  if (is_symmetric()) return plan_.symmetric[rank] + element * element_bytes_;
  return local_->slot(rank, number(k)) + (element - piece(k).begin) * element_bytes_;
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
  return moved;
}

bool Execution::advance(uint64_t k) {
  bool moved = false;
  if (piece(k).phase == Phase::arrived) moved |= reduce(k);
  if (piece(k).phase == Phase::inter) moved |= finish_inter(k);
  if (piece(k).phase == Phase::gathering && k == first_) moved |= gather(k);
  return moved;
}

// Makes this rank's contribution to piece k readable.
bool Execution::enter(uint64_t k) {
  if (device_ && !device_->arrived(k)) return false;
  if (local_ && !is_symmetric() && !local_->slot_free(number(k))) return false;
  Piece& p = piece(k);
  p = {k * plan_.piece, std::min(plan_.count, (k + 1) * plan_.piece)};
  p.phase = Phase::arrived;
  if (plan_.input) take_input();
  if (!local_) return start_inter(k);
  if (!is_symmetric()) {
    const LocalShard own =
        owner() && !plan_.one_shot ? shard(p, local_->local_rank()) : LocalShard{p.end, 0};
    // This rank reads its own shard straight from the buffer: only the rest is staged.
    const size_t after = own.begin + own.count;
    std::byte* slot = local_->slot(local_->local_rank(), number(k));
    const auto copy = plan_.beyond_caches ? copy_from_memory : copy_within_caches;
    copy(slot, at(p.begin), (own.begin - p.begin) * element_bytes_);
    copy(slot + (after - p.begin) * element_bytes_, at(after), (p.end - after) * element_bytes_);
  }
  if (k == 0) local_->write_header(run_of_lane_, header_, digest_);
  // In symmetric memory the whole buffer is readable at once.
  const uint64_t last = is_symmetric() ? number(num_pieces_ - 1) : number(k);
  if (k == 0 || !is_symmetric()) local_->publish(State::arrived, last);
  return true;
}

// Symmetric memory is the callers' own, who get it back where a rank has failed.
bool Execution::doubt() {
  return doubtful_ = local_ && is_symmetric() && local_->failed().has_value();
}

void Execution::compare_headers() const {
  for (int rank = 0; rank < local_->local_size(); ++rank) {
    if (local_->digest_of(rank, run_of_lane_) == digest_) continue;
    RunHeader theirs;
    std::memcpy(&theirs, local_->header_of(rank, run_of_lane_), sizeof theirs);
    if (auto wrong = disagreement(*header_, theirs, theirs.source)) throw MismatchError(*wrong);
  }
}

bool Execution::reduce(uint64_t k) {
  if (!local_->all(State::arrived, number(k))) return false;
  if (k == 0) compare_headers();
  Piece& p = piece(k);
  if (plan_.one_shot) {
    reduce_shard(k, {p.begin, p.end - p.begin}, {at(p.begin)});
    complete(k);
    return true;
  }
  p.phase = Phase::gathering;
  if (!owner()) return true;
  const LocalShard own = shard(p, local_->local_rank());
  const bool last_stage = !plan_.program;
  std::vector<void*> outs;
  if (is_symmetric() && last_stage) {
    for (int rank = 0; rank < local_->local_size(); ++rank) {
      outs.push_back(shared(rank, k, own.begin));
    }
    shared_bytes_ += own.count * element_bytes_ * (outs.size() - 1);
  } else {
    outs.push_back(shared(local_->local_rank(), k, own.begin));
    if (last_stage) outs.push_back(at(own.begin));
  }
  reduce_shard(k, own, std::move(outs));
  if (doubt()) return true;
  if (!last_stage) return start_inter(k);
  local_->publish(State::reduced, number(k));
  ++published_;
  return true;
}

void Execution::reduce_shard(uint64_t k, LocalShard shard, std::vector<void*> outs) {
  std::vector<const void*> sources;
  for (int rank = 0; rank < local_->local_size(); ++rank) {
    const bool own = rank == local_->local_rank();
    sources.push_back(own ? at(shard.begin) : this->shared(rank, k, shard.begin));
  }
  const int divisor = plan_.program ? 1 : plan_.divisor;
  reduce_many(plan_.dtype, plan_.op, outs, sources, shard.count, divisor);
  shared_bytes_ += shard.count * element_bytes_ * (sources.size() - 1);
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
  const LocalShard own =
      local_ ? shard(p, local_->local_rank()) : LocalShard{p.begin, p.end - p.begin};
  Job job;
  job.program = plan_.program(own.count);
  job.data = local_ ? shared(local_->local_rank(), k, own.begin) : at(own.begin);
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
  const LocalShard own = shard(p, local_->local_rank());
  std::byte* mine = shared(local_->local_rank(), k, own.begin);
  if (plan_.divisor > 1) divide(plan_.dtype, mine, own.count, plan_.divisor);
  if (is_symmetric()) {
    for (int rank = 0; rank < local_->local_size(); ++rank) {
      if (rank == local_->local_rank()) continue;
      std::memcpy(shared(rank, k, own.begin), mine, own.count * element_bytes_);
      shared_bytes_ += own.count * element_bytes_;
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
  const auto copy = plan_.beyond_caches ? copy_to_memory : copy_within_caches;
  Piece& p = piece(k);
  bool moved = false;
  for (; p.owners_copied < plan_.rails; ++p.owners_copied) {
    const int rank = p.owners_copied;
    if (!local_->reached(rank, State::reduced, number(k))) return moved;
    moved = true;
    if (is_symmetric()) continue;
    const bool own = rank == local_->local_rank();
    if (own && !plan_.program) continue;  // the reduction wrote it
    const LocalShard s = shard(p, rank);
    copy(at(s.begin), shared(rank, k, s.begin), s.count * element_bytes_);
    if (!own) shared_bytes_ += s.count * element_bytes_;
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
  for (int rank = 0; rank < local_->local_size(); ++rank) {
    if (entered_ == first_) {  // no free slot
      if (waits_for_device()) return std::nullopt;
      if (!local_->reached(rank, State::done, number(first_) - local_->pieces_in_flight())) {
        return rank;
      }
    } else if (piece(first_).phase == Phase::arrived) {
      if (!local_->reached(rank, State::arrived, number(first_))) return rank;
    } else if (piece(first_).phase == Phase::gathering && rank < plan_.rails) {
      if (!local_->reached(rank, State::reduced, number(first_))) return rank;
    }
  }
  return std::nullopt;
}

bool Execution::waits_for_device() const {
  return device_ && entered_ < num_pieces_ && entered_ < first_ + window_.size() &&
         !device_->arrived(entered_);
}

std::string Execution::describe_wait() const {
  if (finished()) return "nothing";
  if (doubtful_) return "the reason why a rank of this node has failed";
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
