// Joining, starting collectives, and leaving, each as: begin, then look until NCCL has done it.
#include "nccl/communicator.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/error.h"

namespace hier::nccl {
namespace {

using std::chrono::microseconds;

const char* name_of(Collective collective) {
  switch (collective) {
    case Collective::reduce_scatter:
      return "reduce_scatter";
    case Collective::all_gather:
      return "all_gather";
    case Collective::all_reduce:
      return "all_reduce";
  }
  return "?";
}

std::string describe(const std::vector<Call>& calls) {
  std::string text = "NCCL ";
  for (const Call& call : calls) {
    if (&call != calls.data()) text += " and ";
    text +=
        std::string(name_of(call.collective)) + " of " + std::to_string(call.count) + " elements";
  }
  return text;
}

Result enqueue(const Functions& nccl, const Call& c, Comm* comm, void* stream) {
  switch (c.collective) {
    case Collective::reduce_scatter:
      return nccl.reduce_scatter(c.send, c.recv, c.count, c.type, c.op, comm, stream);
    case Collective::all_gather:
      return nccl.all_gather(c.send, c.recv, c.count, c.type, comm, stream);
    case Collective::all_reduce:
      return nccl.all_reduce(c.send, c.recv, c.count, c.type, c.op, comm, stream);
  }
  return Result::invalid_argument;
}

bool is_good(Result result) { return result == Result::success || result == Result::in_progress; }

[[noreturn]] void raise(Result result, const std::string& what) {
  switch (result) {
    case Result::remote_error:
      throw PeerError(-1, what + "; a rank of this node has probably died");
    case Result::invalid_argument:
      throw UsageError(what + "; NCCL_DEBUG=WARN shows which argument");
    case Result::invalid_usage:
      throw UsageError(what + "; each rank needs a GPU of its own; NCCL_DEBUG=WARN shows more");
    default:
      throw CudaError(what + "; nvidia-smi shows driver and GPUs, NCCL_DEBUG=WARN shows more");
  }
}

}  // namespace

Communicator::Communicator(const Library& library, const UniqueId& id, int rank, int size,
                           Options options)
    : library_(library), rank_(rank), size_(size), options_(std::move(options)) {
  if (rank < 0 || rank >= size) {
    throw UsageError("rank " + std::to_string(rank) + " is not in an NCCL communicator of size " +
                     std::to_string(size));
  }
  if (options_.max_ctas < 1) {
    throw UsageError("max_ctas=" + std::to_string(options_.max_ctas) + ", but NCCL needs one");
  }
  Config config;
  config.blocking = 0;
  config.max_ctas = options_.max_ctas;
  const std::string attempted = "joining " + whole();
  try {
    settle(run([&](Comm*) {
             const Result result =
                 library_.call.comm_init_rank_config(&joining_, size_, id, rank_, &config);
             comm_ = std::atomic_ref(joining_).load(std::memory_order_acquire);
             return result;
           }),
           attempted);
  } catch (...) {
    stop("it has not come about");  // no destructor runs
    throw;
  }
}

Communicator::~Communicator() { stop("it is gone"); }

void Communicator::start(const std::vector<Call>& calls, void* stream) {
  const Functions& nccl = library_.call;
  settle(run([&](Comm* comm) {
           Result result = nccl.group_start();
           if (!is_good(result)) return result;
           for (const Call& call : calls) {
             result = enqueue(nccl, call, comm, stream);
             if (!is_good(result)) break;
           }
           const Result ended = nccl.group_end();  // in any case: NCCL counts them in each thread
           return is_good(result) ? ended : result;
         }),
         describe(calls) + " in " + whole());
}

void Communicator::check() { expect(look(), "looking after " + whole()); }

void Communicator::close() {
  {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return;
  }
  const std::string attempted = "closing " + whole();
  settle(run([&](Comm* comm) { return library_.call.comm_finalize(comm); }), attempted);
  expect(run([&](Comm* comm) {
           comm_ = nullptr;
           ended_ = "it is closed";
           return library_.call.comm_destroy(comm);
         }),
         attempted);
}

// Calls NCCL under the lock. Its words about a failure are read at once: they are the last ones.
Communicator::Outcome Communicator::run(const std::function<Result(Comm*)>& call) {
  const std::lock_guard lock(mutex_);
  if (!ended_.empty()) throw AbortedError(whole() + " cannot be used: " + ended_);
  const Result result = call(comm_);
  if (is_good(result)) return {result, ""};
  const char* const kind = library_.call.get_error_string(result);
  const char* const last = library_.call.get_last_error(comm_);
  std::string says = kind == nullptr ? "unknown error" : kind;
  if (last != nullptr && *last != '\0') says += std::string(" (") + last + ")";
  return {result, says};
}

Communicator::Outcome Communicator::look() {
  return run([&](Comm* comm) {
    Result state = Result::success;
    const Result asked = library_.call.comm_get_async_error(comm, &state);
    return asked == Result::success ? state : asked;
  });
}

// Waits until NCCL has done what was begun.
void Communicator::settle(const Outcome& begun, const std::string& attempted) {
  if (expect(begun, attempted) == Result::success) return;
  const Clock::time_point deadline = after(options_.timeout);
  for (microseconds pause{10};; pause = std::min(2 * pause, microseconds{2000})) {
    if (expect(look(), attempted) == Result::success) return;
    if (Clock::now() > deadline) {
      const std::string what = attempted + " took longer than " + std::to_string(options_.timeout) +
                               " s: another rank of this node has not come, or hangs";
      stop(what);
      throw Timeout(what);
    }
    try {
      if (options_.on_wake) options_.on_wake();
    } catch (...) {
      stop("it was interrupted while " + attempted);
      throw;
    }
    std::this_thread::sleep_for(pause);
  }
}

// Passes success and in_progress through; anything else ends the communicator.
Result Communicator::expect(const Outcome& outcome, const std::string& attempted) {
  if (is_good(outcome.result)) return outcome.result;
  const std::string what = attempted + ": " + outcome.says;
  stop(what);
  raise(outcome.result, what);
}

void Communicator::stop(const std::string& why) noexcept {
  Comm* comm = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (ended_.empty()) ended_ = why;
    comm = std::exchange(comm_, nullptr);
  }
  // Nobody else can reach it now. It may take a moment: kernels have to notice.
  if (comm != nullptr) library_.call.comm_abort(comm);
}

std::string Communicator::whole() const {
  return "NCCL communicator (rank " + std::to_string(rank_) + " of " + std::to_string(size_) + ")";
}

}  // namespace hier::nccl
