// Cuts a rank's moves into steps and derives from reads and writes which step waits for which.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "program/program.h"

namespace hier {
namespace {

constexpr uint32_t kNone = UINT32_MAX;
constexpr size_t kAlignment = 16;  // elements

// The buffer cut at every chunk bound and then every `segment` elements: a cell is the unit of
// dependence, a step covers whole cells. Both ends of a move cut it alike, rank plays no part.
class Cells {
 public:
  Cells(std::span<const size_t> bounds, size_t segment) {
    for (size_t c = 0; c + 1 < bounds.size(); ++c) {
      first_of_chunk_.push_back(begin_.size());
      for (size_t x = bounds[c]; x < bounds[c + 1]; x += std::min(segment, bounds[c + 1] - x)) {
        begin_.push_back(x);
        chunk_.push_back(static_cast<int>(c));
      }
    }
    first_of_chunk_.push_back(begin_.size());
    begin_.push_back(bounds.back());
  }

  size_t size() const { return chunk_.size(); }
  size_t first_of(int chunk) const { return first_of_chunk_[static_cast<size_t>(chunk)]; }
  size_t begin(size_t cell) const { return begin_[cell]; }
  int chunk_of(size_t cell) const { return chunk_[cell]; }

 private:
  std::vector<size_t> begin_;           // element offset of each cell, and the end
  std::vector<size_t> first_of_chunk_;  // first cell of each chunk, and the end
  std::vector<int> chunk_;
};

struct Edge {
  uint32_t before, after;
  auto operator<=>(const Edge&) const = default;
};

// Remembers per cell the last writer and the readers since, and turns them into edges.
class Dependencies {
 public:
  explicit Dependencies(size_t num_cells)
      : writer_(num_cells, kNone), last_reader_(num_cells, kNone) {}

  // A reader waits for the writer; a writer waits for the readers since, and with them for the
  // writer before. `earlier`, unless it is kNone, is one more to wait for. Returns how many steps
  // `step` waits for.
  uint32_t add(uint32_t step, bool writes, size_t first_cell, size_t end_cell, uint32_t earlier) {
    const size_t first_edge = edges_.size();
    if (earlier != kNone) edges_.push_back({earlier, step});
    for (size_t cell = first_cell; cell < end_cell; ++cell) {
      const bool was_read = last_reader_[cell] != kNone;
      if (writer_[cell] != kNone && !(writes && was_read)) edges_.push_back({writer_[cell], step});
      if (writes) {
        for (uint32_t r = last_reader_[cell]; r != kNone; r = readers_[r].previous)
          edges_.push_back({readers_[r].step, step});
        last_reader_[cell] = kNone;
        writer_[cell] = step;
      } else {
        readers_.push_back({step, last_reader_[cell]});
        last_reader_[cell] = static_cast<uint32_t>(readers_.size() - 1);
      }
    }
    const auto begin = edges_.begin() + static_cast<std::ptrdiff_t>(first_edge);
    std::sort(begin, edges_.end());
    edges_.erase(std::unique(begin, edges_.end()), edges_.end());
    return static_cast<uint32_t>(edges_.size() - first_edge);
  }

  uint32_t writer(size_t cell) const { return writer_[cell]; }

  std::vector<Edge> sorted_edges() && {
    std::sort(edges_.begin(), edges_.end());
    return std::move(edges_);
  }

 private:
  struct Reader {
    uint32_t step, previous;  // a list per cell, newest first
  };
  std::vector<uint32_t> writer_, last_reader_;
  std::vector<Reader> readers_;
  std::vector<Edge> edges_;
};

class Lowering {
 public:
  Lowering(int rank, std::span<const size_t> bounds, size_t segment,
           std::span<const int> machine_of_rank)
      : rank_(rank),
        segment_(segment),
        machine_of_rank_(machine_of_rank),
        cells_(bounds, segment),
        dependencies_(cells_.size()) {}

  // To be called before the moves of a round. What came in a round leaves for other machines when
  // all has left for there that goes out in that round, whichever the peers: all of it passes one
  // network card, and a peer gets a round's data later if those of the next take a part of the
  // rate. (A tree sends one thing to several peers, in turns.)
  void begin_round(const Round& round) {
    earlier_send_ = kNone;
    if (last_send_ == kNone) return;
    const int last_round = program_.steps[last_send_].round;
    for (const Move& move : round) {
      if (move.src != rank_ || !is_elsewhere(move.dst)) continue;
      for (size_t cell = cells_.first_of(move.lo); cell < cells_.first_of(move.hi); ++cell) {
        const uint32_t writer = dependencies_.writer(cell);
        if (writer == kNone || program_.steps[writer].round < last_round) continue;
        earlier_send_ = last_send_;
        return;
      }
    }
  }

  // Neighbouring cells share a step as long as it stays within the segment.
  void emit(StepKind kind, int peer, const Move& move, int round) {
    const size_t begin = cells_.first_of(move.lo), end = cells_.first_of(move.hi);
    const bool leaves = kind == StepKind::send && begin < end && is_elsewhere(peer);
    uint32_t earlier = leaves ? earlier_send_ : kNone;
    if (earlier != kNone && program_.steps[earlier].peer == peer) earlier = kNone;  // in its queue
    for (size_t cell = begin; cell < end;) {
      size_t stop = cell + 1;
      while (stop < end && cells_.begin(stop + 1) - cells_.begin(cell) <= segment_) ++stop;
      Step step{kind, peer, cells_.begin(cell), cells_.begin(stop) - cells_.begin(cell)};
      const auto id = static_cast<uint32_t>(program_.steps.size());
      step.waits =
          dependencies_.add(id, kind != StepKind::send, cell, stop, std::exchange(earlier, kNone));
      step.round = round;
      step.chunk = cells_.chunk_of(cell);
      program_.steps.push_back(step);
      cell = stop;
    }
    if (leaves) last_send_ = size32(program_.steps) - 1;
  }

  Program finish(int world_size) && {
    link_successors();
    program_.steps.push_back({StepKind::send, -1, 0, 0, 0, size32(program_.next)});
    group_by_queue(static_cast<size_t>(world_size));
    return std::move(program_);
  }

 private:
  bool is_elsewhere(int peer) const {
    return machine_of_rank_.empty() || machine_of_rank_[peer] != machine_of_rank_[rank_];
  }

  template <class T>
  static uint32_t size32(const std::vector<T>& values) {
    return static_cast<uint32_t>(values.size());
  }

  void link_successors() {
    const std::vector<Edge> edges = std::move(dependencies_).sorted_edges();
    program_.next.reserve(edges.size());
    auto edge = edges.begin();
    for (uint32_t id = 0; id < size32(program_.steps); ++id) {
      program_.steps[id].first_next = size32(program_.next);
      for (; edge != edges.end() && edge->before == id; ++edge)
        program_.next.push_back(edge->after);
    }
  }

  void group_by_queue(size_t world_size) {
    std::vector<uint32_t> queue_of(2 * world_size, kNone);  // by peer and direction
    const auto queue_index = [&](const Step& step) -> uint32_t& {
      return queue_of[2 * static_cast<size_t>(step.peer) + (step.kind == StepKind::send)];
    };
    const size_t num_steps = program_.num_steps();
    for (size_t id = 0; id < num_steps; ++id) {
      const Step& step = program_.steps[id];
      uint32_t& index = queue_index(step);
      if (index == kNone) {
        index = size32(program_.queues);
        program_.queues.push_back({step.peer, step.kind == StepKind::send, 0, 0});
      }
      ++program_.queues[index].count;
    }
    uint32_t first = 0;
    std::vector<uint32_t> fill;
    for (Queue& queue : program_.queues) {
      queue.first = first;
      fill.push_back(first);
      first += queue.count;
    }
    program_.order.resize(num_steps);
    for (uint32_t id = 0; id < num_steps; ++id)
      program_.order[fill[queue_index(program_.steps[id])]++] = id;
  }

  const int rank_;
  const size_t segment_;
  const std::span<const int> machine_of_rank_;
  Cells cells_;
  Dependencies dependencies_;
  Program program_;
  uint32_t earlier_send_ = kNone;  // to another machine, for which this round's sends wait
  uint32_t last_send_ = kNone;     // to another machine: the last step of the last move
};

void check_arguments(const Schedule& schedule, int rank, std::span<const size_t> bounds,
                     size_t segment) {
  if (rank < 0 || rank >= schedule.world_size)
    throw std::invalid_argument("lower: rank must be 0 to " +
                                std::to_string(schedule.world_size - 1) + ", not " +
                                std::to_string(rank));
  if (bounds.size() != static_cast<size_t>(schedule.num_chunks) + 1)
    throw std::invalid_argument("lower: " + std::to_string(schedule.num_chunks) + " chunks need " +
                                std::to_string(schedule.num_chunks + 1) + " bounds, not " +
                                std::to_string(bounds.size()));
  if (!std::is_sorted(bounds.begin(), bounds.end()))
    throw std::invalid_argument("lower: bounds must ascend");
  if (segment < 1) throw std::invalid_argument("lower: segment must be at least 1 element");
}

}  // namespace

std::vector<size_t> even_bounds(size_t count, int num_chunks) {
  if (num_chunks < 1) throw std::invalid_argument("even_bounds: num_chunks must be at least 1");
  const auto n = static_cast<size_t>(num_chunks);
  std::vector<size_t> bounds;
  for (size_t c = 0; c < n; ++c) {
    const size_t exact = count / n * c + count % n * c / n;  // count * c / n without overflow
    bounds.push_back(exact / kAlignment * kAlignment);
  }
  bounds.push_back(count);
  return bounds;
}

Program lower(const Schedule& schedule, int rank, std::span<const size_t> bounds, size_t segment,
              std::span<const int> machine_of_rank) {
  check_arguments(schedule, rank, bounds, segment);
  Lowering lowering(rank, bounds, segment, machine_of_rank);
  int index = 0;
  for (const Round& round : schedule.rounds) {  // sends first: a round reads before it writes
    lowering.begin_round(round);
    for (const Move& move : round)
      if (move.src == rank) lowering.emit(StepKind::send, move.dst, move, index);
    for (const Move& move : round)
      if (move.dst == rank)
        lowering.emit(move.reduce ? StepKind::recv_reduce : StepKind::recv_copy, move.src, move,
                      index);
    ++index;
  }
  return std::move(lowering).finish(schedule.world_size);
}

}  // namespace hier
