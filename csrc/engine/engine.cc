// The engine: moves the heads of all queues, one quantum a turn.
#include "engine/engine.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace hier {

namespace {

const Step& head(const Queue& queue, const Program& program, uint32_t next) {
  return program.steps[program.order[queue.first + next]];
}

size_t elements_of(const Program& program, const Queue& queue) {
  size_t count = 0;
  for (uint32_t i = 0; i < queue.count; ++i) count += head(queue, program, i).count;
  return count;
}

// A send's bytes.
const std::byte* source_of(const Job& job, const Step& step) {
  return (job.input ? job.input : job.data) + step.offset * job.element_bytes;
}

// What a queue's header says, and must say at the other end.
RunHeader header_of(const Job& job, const Queue& queue) {
  RunHeader header = *job.header;
  // Each pair of ranks may exchange another amount.
  if (header.collective == Collective::alltoall) header.count = elements_of(*job.program, queue);
  return header;
}

constexpr std::array<std::byte, 8> kZeros{};

}  // namespace

Engine::Engine(std::vector<Channel*> channels)
    : channels_(std::move(channels)), fifos_(2 * channels_.size()) {
  for (size_t i = 0; i < fifos_.size(); ++i) {
    fifos_[i].peer = static_cast<int>(i / 2);
    fifos_[i].send = i % 2 == 1;
  }
}

Engine::Ticket Engine::submit(Job job) {
  for (const Queue& queue : job.program->queues) {
    const auto peer = static_cast<size_t>(queue.peer);
    if (peer >= channels_.size() || !channels_[peer]) {
      throw UsageError("this algorithm needs a connection to rank " + std::to_string(queue.peer) +
                       ", which the group did not open");
    }
  }
  std::unique_ptr<Task> task;
  if (spare_.empty()) {
    task = std::make_unique<Task>();
  } else {
    task = std::move(spare_.back());
    spare_.pop_back();
  }
  task->job = std::move(job);
  const Program& program = *task->job.program;
  task->waits.resize(program.num_steps());
  for (size_t i = 0; i < task->waits.size(); ++i) task->waits[i] = program.steps[i].waits;
  task->queues_left = program.queues.size();
  task->ticket = ++last_ticket_;
  if (program.queues.empty()) {
    spare_.push_back(std::move(task));
    return last_ticket_;
  }
  for (const Queue& queue : program.queues) {
    const size_t index = 2 * static_cast<size_t>(queue.peer) + (queue.send ? 1 : 0);
    if (fifos_[index].empty()) active_.push_back(static_cast<uint32_t>(index));
    fifos_[index].cursors.push_back(open(task.get(), queue));
  }
  tasks_.push_back(std::move(task));
  return last_ticket_;
}

Engine::Cursor Engine::open(Task* task, const Queue& queue) const {
  const Job& job = task->job;
  Cursor cursor{.task = task, .queue = &queue};
  cursor.opened = !job.opens;
  cursor.checked = channels_[queue.peer]->checked();
  cursor.padding_left = -(elements_of(*job.program, queue) * job.element_bytes) & 7;
  if (job.opens && queue.send) cursor.opening.header = header_of(job, queue);
  return cursor;
}

bool Engine::finished(Ticket ticket) const {
  return std::none_of(tasks_.begin(), tasks_.end(),
                      [&](const auto& task) { return task->ticket == ticket; });
}

bool Engine::progress() {
  bool moved = false;
  for (size_t i = 0; i < active_.size();) {
    Fifo& fifo = fifos_[active_[i]];
    moved |= turn(fifo);
    if (fifo.empty()) {
      active_[i] = active_.back();
      active_.pop_back();
    } else {
      ++i;
    }
  }
  return moved || spill_exchanges();
}

// Data has come for a receive that waits for this rank's own send of the same elements: a channel
// is full, or will be. (Any channel that is full has such a receive at its other end, or one that
// can move, in the least unfinished round; so this breaks every deadlock and spills nothing else.)
bool Engine::spill_exchanges() {
  bool spilled = false;
  for (uint32_t index : active_) {
    const Fifo& fifo = fifos_[index];
    if (fifo.send || can_move(fifo) || !has_data(fifo)) continue;
    const Cursor& cursor = fifo.cursors.front();
    const Program& program = *cursor.task->job.program;
    spilled |= spill_before(cursor.task, program.order[cursor.queue->first + cursor.next]);
  }
  return spilled;
}

bool Engine::has_data(const Fifo& fifo) const {
  try {
    return !channels_[fifo.peer]->peek(1).empty();
  } catch (const ChannelBroken&) {
    return false;  // the receive itself will say so
  }
}

// Sets aside the sends of `task` up to the one that step `receive` waits for.
bool Engine::spill_before(const Task* task, uint32_t receive) {
  const Program& program = *task->job.program;
  for (uint32_t index : active_) {
    Fifo& fifo = fifos_[index];
    if (!fifo.send || fifo.cursors.empty() || fifo.cursors.front().task != task) continue;
    Cursor& cursor = fifo.cursors.front();
    for (uint32_t i = cursor.next; i < cursor.queue->count; ++i) {
      const uint32_t id = program.order[cursor.queue->first + i];
      if (task->waits[id] > 0) break;
      const auto next = program.next.begin();
      const auto end = next + program.steps[id + 1].first_next;
      if (std::find(next + program.steps[id].first_next, end, receive) == end) continue;
      while (cursor.next <= i) spill_head(fifo, cursor);
      return true;
    }
  }
  return false;
}

void Engine::spill_head(Fifo& fifo, Cursor& cursor) {
  const Job& job = cursor.task->job;
  const uint32_t id = job.program->order[cursor.queue->first + cursor.next];
  const Step& step = job.program->steps[id];
  const auto append = [&](Bytes rest) {
    fifo.spill.insert(fifo.spill.end(), rest.begin(), rest.end());
  };
  if (!cursor.opened) {
    append(cursor.opening.to_send(cursor.checked).subspan(cursor.header_done));
    cursor.opened = true;
  }
  const size_t bytes = step.count * job.element_bytes, done = std::min(cursor.done, bytes);
  append({source_of(job, step) + done, bytes - done});
  if (cursor.checked) {
    cursor.sum.cover(source_of(job, step), bytes);
    append(cursor.sum.trailer().bytes().subspan(cursor.done - done));
  }
  finish_step(cursor, id);
}

bool Engine::flush(Channel& channel, Fifo& fifo) {
  const Bytes rest = Bytes(fifo.spill).subspan(fifo.spill_done);
  const size_t sent = channel.try_write({&rest, 1});
  fifo.spill_done += sent;
  if (fifo.spill_done == fifo.spill.size()) fifo.spill.clear(), fifo.spill_done = 0;
  return sent > 0;
}

bool Engine::turn(Fifo& fifo) {
  Channel& channel = *channels_[fifo.peer];
  bool moved = false;
  size_t budget = channel.quantum();
  try {
    if (!fifo.spill.empty()) moved = flush(channel, fifo);
    if (!fifo.spill.empty()) return moved;
    while (!fifo.cursors.empty() && budget > 0) {
      Cursor& cursor = fifo.cursors.front();
      const bool some =
          fifo.send ? send_some(channel, cursor, budget) : receive_some(channel, cursor, budget);
      moved |= some;
      if (complete(cursor)) {
        retire(fifo);
      } else if (!some) {
        break;
      }
    }
  } catch (const ChannelBroken& broken) {
    throw BrokenStream(fifo.peer, where(fifo) + ": " + broken.what(), broken.unanswered);
  } catch (const Damaged&) {
    throw IntegrityError(damage(fifo));
  }
  return moved;
}

bool Engine::complete(const Cursor& cursor) const {
  return cursor.opened && cursor.next == cursor.queue->count && cursor.padding_left == 0;
}

void Engine::retire(Fifo& fifo) {
  Task* task = fifo.cursors.front().task;
  fifo.cursors.pop_front();
  if (--task->queues_left > 0) return;
  const auto it = std::find_if(tasks_.begin(), tasks_.end(),
                               [&](const auto& owned) { return owned.get() == task; });
  (*it)->job = {};
  spare_.push_back(std::move(*it));
  tasks_.erase(it);
}

void Engine::finish_step(Cursor& cursor, uint32_t id) {
  const Program& program = *cursor.task->job.program;
  const uint32_t end = program.steps[id + 1].first_next;
  for (uint32_t e = program.steps[id].first_next; e < end; ++e) {
    --cursor.task->waits[program.next[e]];
  }
  ++cursor.next;
  cursor.done = 0;
  cursor.sum = {};
}

// Header, payload of the head step, trailer and padding leave in one call, so that a small message
// costs one system call and one packet.
bool Engine::send_some(Channel& channel, Cursor& cursor, size_t& budget) {
  const Job& job = cursor.task->job;
  std::array<Bytes, 4> parts;
  if (!cursor.opened) {
    parts[0] = cursor.opening.to_send(cursor.checked).subspan(cursor.header_done);
  }
  uint32_t id = 0;
  size_t step_left = 0;
  Trailer trailer;
  const bool has_step = cursor.next < cursor.queue->count;
  if (has_step) {
    id = job.program->order[cursor.queue->first + cursor.next];
    // The header waits for its payload: one packet, not two.
    if (cursor.task->waits[id] > 0) return false;
    const Step& step = job.program->steps[id];
    const std::byte* source = source_of(job, step);
    const size_t bytes = step.count * job.element_bytes, done = std::min(cursor.done, bytes);
    parts[1] = {source + done, std::min(bytes - done, budget)};
    step_left = bytes - done;
    if (cursor.checked) {
      cursor.sum.cover(source, done + parts[1].size());
      const size_t of_trailer = cursor.done - done;
      step_left += sizeof(Trailer) - of_trailer;
      trailer = cursor.sum.trailer();
      if (done + parts[1].size() == bytes) parts[2] = trailer.bytes().subspan(of_trailer);
    }
  }
  const size_t of_step = parts[1].size() + parts[2].size();
  const bool last = !has_step || (cursor.next + 1 == cursor.queue->count && of_step == step_left);
  if (last) parts[3] = Bytes(kZeros).first(cursor.padding_left);
  size_t sent = channel.try_write(parts);
  if (sent == 0) return false;
  budget -= std::min(budget, sent);

  const size_t header_sent = std::min(sent, parts[0].size());
  cursor.header_done += header_sent, sent -= header_sent;
  if (header_sent == parts[0].size()) cursor.opened = true;
  const size_t step_sent = std::min(sent, of_step);
  cursor.done += step_sent, sent -= step_sent;
  if (has_step && step_sent == step_left) finish_step(cursor, id);
  cursor.padding_left -= sent;
  return true;
}

bool Engine::receive_header(Channel& channel, Cursor& cursor) {
  const auto whole = cursor.opening.room(cursor.checked);
  const size_t n = channel.try_read(whole.subspan(cursor.header_done));
  cursor.header_done += n;
  if (cursor.header_done == whole.size()) {
    if (cursor.checked) cursor.opening.check();
    cursor.opened = true;
    const RunHeader expected = header_of(cursor.task->job, *cursor.queue);
    if (auto wrong = disagreement(expected, cursor.opening.header, cursor.queue->peer)) {
      throw MismatchError(*wrong);
    }
  }
  return n > 0;
}

bool Engine::receive_padding(Channel& channel, Cursor& cursor) {
  std::array<std::byte, 8> padding;
  const size_t n = channel.try_read(std::span(padding).first(cursor.padding_left));
  if (cursor.checked && !std::equal(padding.begin(), padding.begin() + n, kZeros.begin())) {
    throw Damaged{};
  }
  cursor.padding_left -= n;
  return n > 0;
}

// Bytes of the head step's elements, or of the trailer behind them.
size_t Engine::receive_payload(Channel& channel, Cursor& cursor, const Step& step, size_t most) {
  const Job& job = cursor.task->job;
  const size_t bytes = step.count * job.element_bytes;
  const auto trailer = cursor.checked ? cursor.trailer.room() : std::span<std::byte>();
  if (cursor.done >= bytes) return channel.try_read(trailer.subspan(cursor.done - bytes));
  most = std::min(bytes - cursor.done, most);
  std::byte* at = job.data + step.offset * job.element_bytes + cursor.done;
  if (step.kind == StepKind::recv_copy) {
    const bool last = cursor.done + most == bytes;
    const size_t n = channel.try_read_both({at, most}, last ? trailer : std::span<std::byte>());
    if (cursor.checked) cursor.sum.add({at, std::min(n, most)});
    return n;
  }
  const Bytes ready = channel.peek(job.element_bytes);
  const size_t count = std::min(ready.size(), most) / job.element_bytes;
  if (count == 0) return 0;
  const size_t taken = count * job.element_bytes;
  if (cursor.checked) cursor.sum.add(ready.first(taken));
  job.reduce(at, ready.data(), count);
  channel.consume(taken);
  return taken;
}

bool Engine::receive_some(Channel& channel, Cursor& cursor, size_t& budget) {
  if (!cursor.opened) return receive_header(channel, cursor);
  if (cursor.next == cursor.queue->count) return receive_padding(channel, cursor);
  const Job& job = cursor.task->job;
  const uint32_t id = job.program->order[cursor.queue->first + cursor.next];
  if (cursor.task->waits[id] > 0) return false;
  const Step& step = job.program->steps[id];
  const size_t all = step.count * job.element_bytes + (cursor.checked ? sizeof(Trailer) : 0);
  const size_t n = receive_payload(channel, cursor, step, std::max(budget, size_t{8}));
  cursor.done += n;
  budget -= std::min(budget, n);
  if (cursor.done == all) {
    if (cursor.checked) cursor.sum.check(cursor.trailer);
    finish_step(cursor, id);
  }
  return n > 0;
}

// Whether the head waits for its channel only, and for no other step.
bool Engine::can_move(const Fifo& fifo) const {
  if (!fifo.spill.empty()) return true;
  const Cursor& cursor = fifo.cursors.front();
  if (cursor.next == cursor.queue->count || (!fifo.send && !cursor.opened)) return true;
  return cursor.task->waits[cursor.task->job.program->order[cursor.queue->first + cursor.next]] ==
         0;
}

// A queue whose head waits for a step of another queue would make poll return at once.
bool Engine::stuck(const Fifo& fifo) const { return !fifo.empty() && can_move(fifo); }

// One entry for each socket: poll takes no more entries than the process may have descriptors.
void Engine::blocked_on(std::vector<pollfd>& fds) const {
  for (uint32_t index : active_) {
    const Fifo& fifo = fifos_[index];
    const int fd = channels_[fifo.peer]->fd();
    if (fd < 0 || !stuck(fifo)) continue;
    const bool both = stuck(fifos_[index ^ 1]);  // the other direction of the same socket
    if (both && fifo.send) continue;
    const int events = both ? POLLIN | POLLOUT : fifo.send ? POLLOUT : POLLIN;
    fds.push_back({fd, static_cast<short>(events), 0});
  }
}

bool Engine::stuck_on(int rank) const {
  // A message of the peer may be here already and wait for a step of another queue.
  return stuck(fifos_[2 * rank]) || stuck(fifos_[2 * rank + 1]);
}

}  // namespace hier
