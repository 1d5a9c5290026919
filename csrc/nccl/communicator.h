// An NCCL communicator of the ranks of one node in which nothing can block for ever: it is
// non-blocking on NCCL's side, and each step here has a deadline and can be aborted.
#pragma once

#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "nccl/library.h"

namespace hier::nccl {

enum class Collective { reduce_scatter, all_gather, all_reduce };

// One collective on device memory. `count` is in elements: of the whole for all_reduce, otherwise
// of one rank's shard.
struct Call {
  Collective collective;
  const void* send;
  void* recv;
  size_t count;
  DataType type;
  ReduceOp op = ReduceOp::sum;
};

struct Options {
  int max_ctas = 8;      // multiprocessors taken from backpropagation; NCCL itself takes up to 32
  double timeout = 300;  // seconds, for each step
  // Called again and again by a thread that waits, without a lock. What it throws ends the wait,
  // and with it the communicator.
  std::function<void()> on_wake = {};
};

// Poisoned by its first error, as a group is: NCCL's part is aborted, and each later call throws
// AbortedError with the reason. One thread at a time joins, starts and closes; abort and check may
// come from any other, but not after the destructor.
class Communicator {
 public:
  // Returns once all ranks are here. Uses the calling thread's current GPU, which no other rank
  // may use. Throws UsageError, CudaError, PeerError, Timeout, or AbortedError.
  Communicator(const Library& library, const UniqueId& id, int rank, int size, Options options);
  ~Communicator();  // aborts, unless closed
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  // Enqueues the calls on `stream`, a cudaStream_t, as one launch; returns before they have run.
  void start(const std::vector<Call>& calls, void* stream);

  // Throws what has gone wrong in the background meanwhile, such as the death of a peer.
  void check();

  // Ends what runs, on the GPU as well. Every other rank has to abort too: it may wait for this.
  void abort() noexcept { stop("this process aborted it"); }

  // Lets what was started end. The other ranks have to close as well.
  void close();

  int rank() const { return rank_; }
  int size() const { return size_; }

 private:
  struct Outcome {
    Result result;
    std::string says;  // NCCL's own words about a failure
  };
  Outcome run(const std::function<Result(Comm*)>& call);
  Outcome look();
  void settle(const Outcome& begun, const std::string& attempted);
  Result expect(const Outcome& outcome, const std::string& attempted);
  void stop(const std::string& why) noexcept;
  std::string whole() const;

  const Library library_;
  const int rank_, size_;
  const Options options_;

  // Guards what follows, and every use of comm_: NCCL's communicators are not for two threads. A
  // non-blocking communicator returns from every call at once, so nobody waits for the lock.
  std::mutex mutex_;
  Comm* comm_ = nullptr;
  Comm* joining_ = nullptr;  // NCCL's: its thread stores comm_ here again, even while it is aborted
  std::string ended_;        // why there is no comm_
};

}  // namespace hier::nccl
