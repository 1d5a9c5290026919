// What engine and messages say of themselves in words: for errors and timeouts.
#include <algorithm>

#include "base/error.h"
#include "engine/engine.h"
#include "engine/messages.h"

namespace hier {

namespace {

constexpr int kMostNamed = 8;  // messages in an error's text
constexpr const char* kDamage =
    "): the checksum differs. Look for a faulty network device, cable or memory";

}  // namespace

std::string Engine::where(const Fifo& fifo) const {
  if (fifo.cursors.empty()) return "send to rank " + std::to_string(fifo.peer);
  const Cursor& cursor = fifo.cursors.front();
  const Job& job = cursor.task->job;
  const std::string verb = fifo.send ? "send to rank " : "receive from rank ";
  std::string text = verb + std::to_string(fifo.peer);
  if (cursor.next < cursor.queue->count) {
    const Step& step = job.program->steps[job.program->order[cursor.queue->first + cursor.next]];
    const size_t bytes = step.count * job.element_bytes;
    text += " of " + std::to_string(bytes) + " B (round " + std::to_string(step.round) +
            ", chunk " + std::to_string(step.chunk) + ", " +
            std::to_string(std::min(cursor.done, bytes)) + " B done)";
  }
  if (job.header) text += " in " + describe(*job.header);
  return text;
}

std::string Engine::damage(const Fifo& fifo) const {
  const Cursor& cursor = fifo.cursors.front();
  const RunHeader* header = cursor.task->job.header;
  return "data from rank " + std::to_string(fifo.peer) +
         (header ? " to rank " + std::to_string(header->source) : "") +
         " were damaged on the way (" + (cursor.opened ? "" : "the run header, ") + where(fifo) +
         kDamage;
}

std::string Engine::describe_wait() const {
  // Receives say more than sends, which usually wait for a receive of somebody else.
  for (const bool send : {false, true}) {
    for (uint32_t index : active_) {
      const Fifo& fifo = fifos_[index];
      if (fifo.send == send && can_move(fifo)) return where(fifo);
    }
  }
  return "nothing on the engine";
}

std::string amount(DType dtype, size_t bytes) {
  return std::string(name_of(dtype)) + "[" + std::to_string(bytes / size_of(dtype)) + "]";
}

std::string describe(const Transfer& t) {
  const std::string peer = t.peer == kAnySource ? "any rank" : "rank " + std::to_string(t.peer);
  const std::string tag = t.tag == kAnyTag ? "any tag" : "tag " + std::to_string(t.tag);
  return std::string(t.send ? "send(" : "recv(") + amount(t.dtype, t.bytes) +
         (t.send ? ") to " : ") from ") + peer + ", " + tag;
}

std::string Messages::others_from(const Transfer& transfer) const {
  std::string text;
  int named = 0;
  for (const Unexpected& unexpected : unexpected_) {
    if (transfer.peer != kAnySource && transfer.peer != unexpected.source) continue;
    if (++named > kMostNamed) return text + ", ...";
    text += (text.empty() ? "" : ", ") + std::string("tag ") +
            std::to_string(unexpected.header.tag) + " from rank " +
            std::to_string(unexpected.source);
  }
  return text;
}

void Messages::broken(int rank, const ChannelBroken& why) const {
  throw BrokenStream(rank, describe(*waits_for(rank)) + ": " + why.what(), why.unanswered);
}

void Messages::corrupt(int rank, const char* what) const {
  throw MismatchError("the messages of rank " + std::to_string(rank) + " make no sense (" + what +
                      "): another version of hier-allreduce, or corrupted data");
}

void Messages::damaged(int rank, const Peer& peer) const {
  const MessageHeader& header = peer.opening.header;
  const bool opened = peer.header_done == peer.opening.bytes(true) && peer.payload_done > 0;
  throw IntegrityError(
      "a message from rank " + std::to_string(rank) + " to rank " + std::to_string(rank_) +
      " was damaged on the way (" +
      (opened ? amount(header.dtype, header.bytes) + ", tag " + std::to_string(header.tag)
              : "its header") +
      kDamage);
}

}  // namespace hier
