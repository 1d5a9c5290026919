// An NCCL communicator of the ranks of one node in which nobody waits for ever. On NCCL's side it
// is a blocking one, since NCCL starts a thread for each call of another. Joining and closing wait
// for other ranks, so they have a thread of their own and a deadline; a collective is only
// enqueued.
#pragma once

#include <functional>
#include <mutex>
#include <string>

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
  double timeout = 300;  // seconds to join, and at most 10 of them to close
  // Called again and again by a thread that waits, without a lock. What it throws ends the wait,
  // and with it the communicator.
  std::function<void()> on_wake = {};
  // Makes the communicator's GPU the current one of the threads that join and close.
  std::function<void()> use_gpu = {};
};

// Poisoned by its first error, as a group is: NCCL's part is aborted, and each later call throws
// AbortedError with the reason. One thread at a time joins, starts and closes; abort and check may
// come from any other, but not after the destructor.
class Communicator {
 public:
  // Returns once all ranks are here. No other rank may use this one's GPU. Throws UsageError,
  // CudaError, PeerError, Timeout, or SystemError.
  Communicator(const Library& library, const UniqueId& id, int rank, int size, Options options);
  ~Communicator();  // aborts, unless closed
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  // Enqueues the call on `stream`, a cudaStream_t; returns before it has run.
  void start(const Call& call, void* stream);

  // Throws what has gone wrong in the background meanwhile, such as the death of a peer.
  void check();

  // Ends what runs, on the GPU as well, and a thread that does not come back from a call. Every
  // other rank has to abort too: it may wait for this.
  void abort() noexcept { stop("this process aborted it"); }

  // Lets what was started end. The other ranks have to close as well.
  void close();

  int rank() const { return rank_; }
  int size() const { return size_; }

 private:
  void use(const std::function<Result(Comm*)>& call, const std::function<std::string()>& attempted);
  Comm* current();
  std::string says(Result result) const;
  void stop(const std::string& why) noexcept;
  std::string whole() const;

  const Library library_;
  const int rank_, size_;
  const Options options_;

  std::timed_mutex in_nccl_;  // of the thread that is in a call: communicators are not for two
  std::mutex mutex_;          // guards what follows
  Comm* comm_ = nullptr;
  std::string ended_;  // why there is no comm_
};

}  // namespace hier::nccl
