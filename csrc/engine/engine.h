// Runs programs: per peer and direction a FIFO of steps, whose heads advance as their dependencies
// clear and the channel has room or data. Nothing blocks; one thread at a time drives an engine.
//
// It cannot deadlock: order all steps by (job, round, list position, piece). The least unfinished
// step has its dependencies and its FIFO predecessors finished on both ends, so it can move
// whatever the capacity of the channels. There is one exception to its dependencies: ranks that
// exchange a chunk within a round (recursive doubling) each receive into what they still send.
// Where data has come for such a receive and nothing else moves, the rest of the send is set aside
// (a spill). Sums are deterministic: the additions into an element form a chain that the program
// fixes.
#pragma once

#include <poll.h>

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "engine/checksum.h"
#include "engine/header.h"
#include "program/program.h"
#include "reduce/reduce.h"
#include "transport/channel.h"

namespace hier {

struct Job {
  std::shared_ptr<const Program> program;  // its peers index the engine's channels
  std::byte* data = nullptr;               // the buffer that the program's offsets refer to
  size_t element_bytes = 0;
  ReduceFn reduce = nullptr;
  const RunHeader* header = nullptr;  // of the run, for errors; outlives the job
  bool opens = false;                 // sends the header, and compares the peers', first
  const std::byte* input = nullptr;   // where sends read; null: in `data`
};

class Engine {
 public:
  // channels[r] leads to rank r; null where there is none. The engine does not own them.
  explicit Engine(std::vector<Channel*> channels);

  using Ticket = uint64_t;
  // Queues a job behind the earlier ones. Throws UsageError if a channel it needs is missing.
  Ticket submit(Job job);
  bool finished(Ticket ticket) const;

  // One turn: each queue moves at most one quantum. True if anything moved.
  // Throws BrokenStream or IntegrityError, naming rank and step, or MismatchError.
  bool progress();

  bool idle() const { return active_.empty(); }
  void blocked_on(std::vector<pollfd>& fds) const;  // what to poll when progress() is false
  // When progress() is false: a queue to or from this rank waits for its channel alone.
  bool stuck_on(int rank) const;
  std::string describe_wait() const;  // "rank 3 ... round 2", for a timeout

 private:
  struct Task {
    Job job;
    std::vector<uint32_t> waits;
    size_t queues_left = 0;
    Ticket ticket = 0;
  };
  // The place of one task in one queue.
  struct Cursor {
    Task* task;
    const Queue* queue;
    uint32_t next = 0;                // index of the head step within the queue
    size_t done = 0;                  // bytes of the head step, and then of its trailer
    size_t header_done = 0;           // bytes of the opening
    size_t padding_left = 0;          // bytes after the last step: jobs start at multiples of 8
    bool opened = false;              // the opening has passed
    bool checked = false;             // units have trailers
    Checksum sum = {};                // of the head step
    Trailer trailer = {};             // of the head step, as it is received
    Opening<RunHeader> opening = {};  // as it is sent, or received
  };
  struct Fifo {
    int peer = 0;
    bool send = false;
    std::deque<Cursor> cursors;
    std::vector<std::byte> spill;  // bytes of a finished send that the channel has not taken
    size_t spill_done = 0;
    bool empty() const { return cursors.empty() && spill.empty(); }
  };

  bool turn(Fifo& fifo);
  bool flush(Channel& channel, Fifo& fifo);
  bool spill_exchanges();
  bool has_data(const Fifo& fifo) const;
  bool spill_before(const Task* task, uint32_t receive);
  void spill_head(Fifo& fifo, Cursor& cursor);
  Cursor open(Task* task, const Queue& queue) const;
  bool send_some(Channel& channel, Cursor& cursor, size_t& budget);
  bool receive_some(Channel& channel, Cursor& cursor, size_t& budget);
  bool receive_header(Channel& channel, Cursor& cursor);
  bool receive_padding(Channel& channel, Cursor& cursor);
  size_t receive_payload(Channel& channel, Cursor& cursor, const Step& step, size_t most);
  void finish_step(Cursor& cursor, uint32_t id);
  bool complete(const Cursor& cursor) const;
  bool can_move(const Fifo& fifo) const;
  bool stuck(const Fifo& fifo) const;
  void retire(Fifo& fifo);
  std::string where(const Fifo& fifo) const;
  std::string damage(const Fifo& fifo) const;

  std::vector<Channel*> channels_;
  std::vector<Fifo> fifos_;                   // 2 * rank + (1 if sending)
  std::vector<uint32_t> active_;              // indices of fifos with cursors
  std::deque<std::unique_ptr<Task>> tasks_;   // unfinished, oldest first
  std::vector<std::unique_ptr<Task>> spare_;  // keeps their memory for the next job
  Ticket last_ticket_ = 0;
};

}  // namespace hier
