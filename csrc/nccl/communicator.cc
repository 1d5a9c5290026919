// Joining, starting collectives, and leaving.
#include "nccl/communicator.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "base/error.h"
#include "nccl/bounded_call.h"

namespace hier::nccl {
namespace {

// For a thread to come back from a call that does not wait: NCCL connects at a first collective.
constexpr auto kPatience = std::chrono::seconds(2);
constexpr double kFarewell = 10;  // seconds

// What a thread that joins, or leaves, takes along: it may outlive the communicator.
struct Joining {
  Functions nccl;
  std::function<void()> use_gpu;
  UniqueId id;
  int rank, size;
  Config config;
  Comm* comm = nullptr;

  Result join() {
    if (use_gpu) use_gpu();
    return nccl.comm_init_rank_config(&comm, size, id, rank, &config);
  }
  Result leave() const {
    if (use_gpu) use_gpu();
    const Result finalized = nccl.comm_finalize(comm);
    return finalized == Result::success ? nccl.comm_destroy(comm) : finalized;
  }
};

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
  const auto joining =
      std::make_shared<Joining>(Joining{library.call, options_.use_gpu, id, rank, size, Config{}});
  joining->config.blocking = 1;
  joining->config.max_ctas = options_.max_ctas;
  const std::string attempted = "joining " + whole();
  const Result result = call_bounded({attempted, options_.timeout, options_.on_wake,
                                      [joining] { return joining->join(); },
                                      [joining] { joining->nccl.comm_abort(joining->comm); }});
  if (result != Result::success) raise(result, attempted + ": " + says(result));
  comm_ = joining->comm;
}

Communicator::~Communicator() { stop("it is gone"); }

void Communicator::start(const Call& call, void* stream) {
  use([&](Comm* comm) { return enqueue(library_.call, call, comm, stream); },
      [&] {
        return std::string("NCCL ") + name_of(call.collective) + " of " +
               std::to_string(call.count) + " elements in " + whole();
      });
}

void Communicator::check() {
  use(
      [&](Comm* comm) {
        Result state = Result::success;
        const Result asked = library_.call.comm_get_async_error(comm, &state);
        return asked == Result::success ? state : asked;
      },
      [&] { return "looking after " + whole(); });
}

void Communicator::close() {
  Comm* comm = nullptr;
  {
    const std::lock_guard alone(in_nccl_);
    const std::lock_guard lock(mutex_);
    comm = std::exchange(comm_, nullptr);
    if (comm == nullptr) return;
    ended_ = "it is closed";
  }
  const auto leaving = std::make_shared<Joining>(
      Joining{library_.call, options_.use_gpu, {}, rank_, size_, {}, comm});
  const std::string attempted = "closing " + whole();
  const Result result = call_bounded({attempted, std::min(options_.timeout, kFarewell),
                                      options_.on_wake, [leaving] { return leaving->leave(); }});
  if (result != Result::success) raise(result, attempted + ": " + says(result));
}

// Makes a call that does not wait for other ranks. An error of NCCL's ends the communicator.
void Communicator::use(const std::function<Result(Comm*)>& call,
                       const std::function<std::string()>& attempted) {
  Result result = Result::success;
  std::string words;
  {
    const std::lock_guard alone(in_nccl_);
    result = call(current());
    if (is_good(result)) return;
    words = says(result);  // at once: they are NCCL's last ones
  }
  current();  // throws if this is NCCL's answer to an abort
  const std::string what = attempted() + ": " + words;
  stop(what);
  raise(result, what);
}

Comm* Communicator::current() {
  const std::lock_guard lock(mutex_);
  if (!ended_.empty()) throw AbortedError(whole() + " cannot be used: " + ended_);
  return comm_;
}

// NCCL's own words about a failure.
std::string Communicator::says(Result result) const {
  const char* const kind = library_.call.get_error_string(result);
  const char* const last = library_.call.get_last_error(nullptr);
  std::string words = kind == nullptr ? "unknown error" : kind;
  if (last != nullptr && *last != '\0') words += std::string(" (") + last + ")";
  return words;
}

void Communicator::stop(const std::string& why) noexcept {
  Comm* comm = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (ended_.empty()) ended_ = why;
    comm = std::exchange(comm_, nullptr);
  }
  if (comm == nullptr) return;
  // Nobody new can reach it now. Who is in a call comes back soon, or waits inside NCCL for a rank
  // that has died: then the abort alone lets him go.
  const std::unique_lock alone(in_nccl_, kPatience);
  library_.call.comm_abort(comm);  // it may take a moment: kernels have to notice
}

std::string Communicator::whole() const {
  return "NCCL communicator (rank " + std::to_string(rank_) + " of " + std::to_string(size_) + ")";
}

}  // namespace hier::nccl
