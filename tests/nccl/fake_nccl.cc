// A libnccl.so.2 for machines without a GPU: ranks are threads of one process, memory is the
// host's, sums are of f32. Written from NCCL's documentation and independently of csrc/nccl, so
// that the two are compared. Communicators are blocking ones: joining and finalizing wait for the
// other ranks. A collective is enqueued; each communicator has a worker thread in a stream's place.
// How it misbehaves is said by environment variables, while they are set:
//   FAKE_NCCL_VERSION=21403        what ncclGetVersion says
//   FAKE_NCCL_INIT=never|error     joining does not end; fails at once
//   FAKE_NCCL_COLLECTIVE=error     collectives fail in the background
//   FAKE_NCCL_ENQUEUE=never        a collective's call does not return before an abort
//   FAKE_NCCL_FINALIZE=never       leaving does not end
// Compiled with -DWITHOUT_FINALIZE it lacks ncclCommFinalize. With -DCPU_STREAMS streams are those
// of the core's CPU runtime, and collectives run on them; they must then have one order, see Gpu.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#ifdef CPU_STREAMS
#include <set>

#include "device/cpu_runtime.h"
#endif

namespace {

enum { kSuccess = 0, kUnhandledCuda = 1, kInvalidArgument = 4, kInvalidUsage = 5, kRemote = 6 };
enum { kFloat32 = 7, kSum = 0 };

constexpr auto kPause = std::chrono::milliseconds(5);

bool is_set(const char* variable, const char* value) {
  const char* const is = std::getenv(variable);
  return is != nullptr && std::strcmp(is, value) == 0;
}

struct Id {
  char internal[128];
};

struct Config {  // as far as 2.18 knew it
  size_t size;
  unsigned magic, version;
  int blocking, cga_cluster_size, min_ctas, max_ctas;
  const char* net_name;
  int split_share;
};

// What the ranks of a communicator share.
struct World {
  std::mutex mutex;
  std::condition_variable changed;
  int size, waiting = 0;
  long generation = 0;
  std::vector<const float*> sends;
};

std::mutex worlds_mutex;
std::map<std::string, std::weak_ptr<World>> worlds;
std::string last_error;
int last_max_ctas = 0, alive = 0;   // communicators that are neither destroyed nor aborted
int last_device = -1;               // current at the last joining, with -DCPU_STREAMS
std::map<std::string, long> calls;  // of each kind of collective

std::shared_ptr<World> world_of(const Id& id, int size) {
  const std::lock_guard lock(worlds_mutex);
  std::weak_ptr<World>& entry = worlds[std::string(id.internal, sizeof id.internal)];
  std::shared_ptr<World> world = entry.lock();
  if (world == nullptr) {
    entry = world = std::make_shared<World>();
    world->size = size;
    world->sends.resize(static_cast<size_t>(size));
  }
  return world;
}

}  // namespace

struct ncclComm {
  std::shared_ptr<World> world;
  int rank;
  int state = kSuccess;  // this and the rest under world->mutex
  bool aborted = false, leaving = false;
  int inside = 0;  // threads in a call that hangs
  std::deque<std::function<void()>> jobs;
  std::thread worker;

  // False if this rank is aborted meanwhile.
  bool barrier() {
    std::unique_lock lock(world->mutex);
    const long mine = world->generation;
    if (++world->waiting == world->size) {
      world->waiting = 0;
      ++world->generation;
      world->changed.notify_all();
    }
    world->changed.wait(lock, [&] { return world->generation != mine || aborted; });
    return !aborted;
  }

  void push(std::function<void()> job) {
    const std::lock_guard lock(world->mutex);
    jobs.push_back(std::move(job));
    world->changed.notify_all();
  }

  void work() {
    std::unique_lock lock(world->mutex);
    for (;;) {
      world->changed.wait(lock, [&] { return !jobs.empty() || aborted || leaving; });
      if (aborted || jobs.empty()) return;
      const std::function<void()> job = std::move(jobs.front());
      jobs.pop_front();
      lock.unlock();
      job();
      lock.lock();
    }
  }

  // Until this rank is aborted, or the variable is gone.
  void hang(const char* variable) {
    const auto kept = world;  // an abort deletes this object once nobody is inside
    std::unique_lock lock(kept->mutex);
    ++inside;
    while (!world->changed.wait_for(lock, kPause, [&] { return aborted; })) {
      if (!is_set(variable, "never")) break;
    }
    --inside;
    kept->changed.notify_all();
  }

  // out[i] = sum over ranks of send[first + i], or the concatenation of all sends.
  void collect(const float* send, float* recv, size_t first, size_t count, bool sums) {
    if (is_set("FAKE_NCCL_COLLECTIVE", "error")) {
      const std::lock_guard lock(world->mutex);
      last_error = "connection to peer lost";
      state = kRemote;
      return;
    }
    {
      const std::lock_guard lock(world->mutex);
      world->sends[static_cast<size_t>(rank)] = send;
    }
    if (!barrier()) return;
    std::vector<float> out(sums ? count : 0);
    for (const float* from : world->sends) {
      if (!sums) out.insert(out.end(), from, from + count);
      for (size_t i = 0; sums && i < count; ++i) out[i] += from[first + i];
    }
    if (barrier()) std::copy(out.begin(), out.end(), recv);  // recv may be somebody's send
    barrier();
  }

  void end(bool abort) {
    {
      const std::lock_guard lock(world->mutex);
      (abort ? aborted : leaving) = true;
      world->changed.notify_all();
    }
    worker.join();
    {
      std::unique_lock lock(world->mutex);
      world->changed.wait(lock, [&] { return inside == 0; });
    }
    const std::lock_guard lock(worlds_mutex);
    --alive;
  }
};

namespace {

#ifdef CPU_STREAMS
std::mutex gpus_mutex;  // guards what follows
std::string violation;  // the first

// A GPU has room for one collective here. NCCL's kernels wait on the GPU for those of the other
// ranks, so that two ranks deadlock which run two of them in different orders. Streams alone can
// give them an order: a collective must not begin while one that was enqueued before it on the
// same GPU has not ended, in whichever communicator. A thread is a rank, and so a GPU.
struct Gpu {
  long enqueued = 0;
  std::set<long> open;
};

std::shared_ptr<Gpu> this_gpu() {
  thread_local const auto gpu = std::make_shared<Gpu>();
  return gpu;
}

std::function<void()> in_order(std::function<void()> job) {
  const std::lock_guard lock(gpus_mutex);
  const std::shared_ptr<Gpu> gpu = this_gpu();
  const long number = gpu->enqueued++;
  gpu->open.insert(number);
  return [=, job = std::move(job)] {
    {
      const std::lock_guard guard(gpus_mutex);
      const long first = *gpu->open.begin();
      if (first != number && violation.empty()) {
        violation = "collective " + std::to_string(number) + " of a GPU begins while collective " +
                    std::to_string(first) + " has not ended: ranks may deadlock";
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(500));  // two that may meet do
    job();
    const std::lock_guard guard(gpus_mutex);
    gpu->open.erase(number);
  };
}
#endif

int enqueue(ncclComm* comm, const char* kind, int type, int op, void* stream,
            std::function<void()> job) {
  if (type != kFloat32 || op != kSum) {
    last_error = "the fake adds f32 alone";
    return kInvalidArgument;
  }
  if (is_set("FAKE_NCCL_ENQUEUE", "never")) {
    comm->hang("FAKE_NCCL_ENQUEUE");
    last_error = "aborted while it connected";
    return kInvalidUsage;
  }
  {
    const std::lock_guard lock(worlds_mutex);
    ++calls[kind];
  }
#ifdef CPU_STREAMS
  static auto* runtime = new hier::CpuRuntime(hier::CpuRuntime::Flags::atomics);
  runtime->launch(in_order(std::move(job)), stream);
#else
  static_cast<void>(stream);
  comm->push(std::move(job));
#endif
  return kSuccess;
}

}  // namespace

extern "C" {

int ncclGetVersion(int* version) {
  const char* const chosen = std::getenv("FAKE_NCCL_VERSION");
  *version = chosen == nullptr ? 21800 : std::atoi(chosen);
  return kSuccess;
}

int ncclGetUniqueId(Id* id) {
  static int made = 0;
  const std::lock_guard lock(worlds_mutex);
  std::memset(id, 0, sizeof *id);
  std::memcpy(id->internal, &++made, sizeof made);
  id->internal[127] = 'x';  // all 128 bytes have to travel
  return kSuccess;
}

int ncclCommInitRankConfig(ncclComm** comm, int size, Id id, int rank, Config* config) {
  const bool known = config->size >= sizeof(Config) && config->magic == 0xcafebeef;
  if (!known || config->blocking != 1 || id.internal[127] != 'x') {
    last_error = "the configuration is not as nccl.h has it";
    return kInvalidArgument;
  }
  if (is_set("FAKE_NCCL_INIT", "error")) {
    last_error = "CUDA driver version is insufficient";
    return kUnhandledCuda;
  }
  auto* const made = *comm = new ncclComm{world_of(id, size), rank};
  {
    const std::lock_guard lock(worlds_mutex);
    last_max_ctas = config->max_ctas;
    ++alive;
#ifdef CPU_STREAMS
    last_device = hier::CpuRuntime(hier::CpuRuntime::Flags::atomics).current_device();
#endif
  }
  made->worker = std::thread([made] { made->work(); });
  if (is_set("FAKE_NCCL_INIT", "never")) made->hang("FAKE_NCCL_INIT");
  made->barrier();
  return kSuccess;
}

int ncclCommGetAsyncError(ncclComm* comm, int* state) {
  const std::lock_guard lock(comm->world->mutex);
  *state = comm->state;
  return kSuccess;
}

#ifndef WITHOUT_FINALIZE
int ncclCommFinalize(ncclComm* comm) {
  if (is_set("FAKE_NCCL_FINALIZE", "never")) comm->hang("FAKE_NCCL_FINALIZE");
#ifndef CPU_STREAMS  // what is enqueued ends first
  std::promise<void> ended;
  comm->push([&ended] { ended.set_value(); });
  ended.get_future().wait();
#endif
  comm->barrier();
  return kSuccess;
}
#endif

int ncclCommDestroy(ncclComm* comm) {
  comm->end(false);
  delete comm;
  return kSuccess;
}

int ncclCommAbort(ncclComm* comm) {
  comm->end(true);
#ifndef CPU_STREAMS  // a stream may be in one of its collectives
  delete comm;
#endif
  return kSuccess;
}

int ncclReduceScatter(const float* send, float* recv, size_t count, int type, int op,
                      ncclComm* comm, void* stream) {
  const size_t first = count * static_cast<size_t>(comm->rank);
  return enqueue(comm, "reduce_scatter", type, op, stream,
                 [=] { comm->collect(send, recv, first, count, true); });
}

int ncclAllGather(const float* send, float* recv, size_t count, int type, ncclComm* comm,
                  void* stream) {
  return enqueue(comm, "all_gather", type, kSum, stream,
                 [=] { comm->collect(send, recv, 0, count, false); });
}

int ncclAllReduce(const float* send, float* recv, size_t count, int type, int op, ncclComm* comm,
                  void* stream) {
  return enqueue(comm, "all_reduce", type, op, stream,
                 [=] { comm->collect(send, recv, 0, count, true); });
}

const char* ncclGetErrorString(int result) {
  return result == kUnhandledCuda     ? "unhandled cuda error"
         : result == kInvalidArgument ? "invalid argument"
         : result == kInvalidUsage    ? "invalid usage"
         : result == kRemote          ? "remote process exited or there was a network error"
                                      : "no error";
}

const char* ncclGetLastError(ncclComm*) { return last_error.c_str(); }

#ifdef CPU_STREAMS
// What broke the rule of one order since the last call, or "".
const char* fake_violation() {
  const std::lock_guard lock(gpus_mutex);
  thread_local std::string said;
  said = std::exchange(violation, "");
  return said.c_str();
}
#endif
int fake_max_ctas() { return last_max_ctas; }
int fake_alive() {
  const std::lock_guard lock(worlds_mutex);
  return alive;
}
int fake_last_device() { return last_device; }
// How many calls of this kind there were since the last question.
long fake_calls(const char* kind) {
  const std::lock_guard lock(worlds_mutex);
  return std::exchange(calls[kind], 0);
}

}  // extern "C"
