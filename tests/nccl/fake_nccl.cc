// A libnccl.so.2 for machines without a GPU: ranks are threads of one process, memory is the
// host's, sums are of f32. Written from NCCL's documentation and independently of csrc/nccl, so
// that the two are compared. Each communicator has a worker thread: no call blocks, as with
// blocking=0. How it misbehaves is said by environment variables, at the time of the call:
//   FAKE_NCCL_VERSION=21403        what ncclGetVersion says
//   FAKE_NCCL_INIT=never|error     joining does not end; fails at once
//   FAKE_NCCL_COLLECTIVE=error     collectives fail in the background
//   FAKE_NCCL_FINALIZE=never       leaving does not end
// Compiled with -DWITHOUT_FINALIZE it lacks ncclCommFinalize. With -DCPU_STREAMS streams are those
// of the core's CPU runtime, and collectives run on them, in order; each is then enqueued at once.
#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#ifdef CPU_STREAMS
#include "device/cpu_runtime.h"
#endif

namespace {

enum { kSuccess = 0, kUnhandledCuda = 1, kInvalidArgument = 4, kRemote = 6, kInProgress = 7 };
enum { kFloat32 = 7, kSum = 0 };

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
int last_max_ctas = 0, alive = 0;  // communicators that are neither destroyed nor aborted

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
  int state = kInProgress;  // this and the rest under world->mutex
  bool aborted = false, leaving = false;
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
    state = kInProgress;
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
      if (jobs.empty() && state == kInProgress && !aborted) state = kSuccess;
    }
  }

  void hang() {
    std::unique_lock lock(world->mutex);
    world->changed.wait(lock, [&] { return aborted; });
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
    const std::lock_guard lock(worlds_mutex);
    --alive;
  }
};

namespace {

thread_local int depth = 0;
thread_local std::vector<std::pair<ncclComm*, std::function<void()>>> group;

int enqueue(ncclComm* comm, int type, int op, void* stream, std::function<void()> job) {
  if (type != kFloat32 || op != kSum) {
    last_error = "the fake adds f32 alone";
    return kInvalidArgument;
  }
#ifdef CPU_STREAMS
  static auto* runtime = new hier::CpuRuntime(false);
  runtime->launch(std::move(job), stream);
  return kSuccess;
#endif
  static_cast<void>(stream);
  if (depth > 0) {
    group.emplace_back(comm, std::move(job));
    return kSuccess;
  }
  comm->push(std::move(job));
  return kInProgress;
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
  if (!known || config->blocking != 0 || id.internal[127] != 'x') {
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
  }
  made->worker = std::thread([made] { made->work(); });
  const bool never = is_set("FAKE_NCCL_INIT", "never");
  made->push([made, never, comm] {
    never ? made->hang() : static_cast<void>(made->barrier());
    __atomic_store_n(comm, made, __ATOMIC_RELEASE);  // as NCCL does, from its thread
  });
  return kInProgress;
}

int ncclCommGetAsyncError(ncclComm* comm, int* state) {
  const std::lock_guard lock(comm->world->mutex);
  *state = comm->state;
  return kSuccess;
}

#ifndef WITHOUT_FINALIZE
int ncclCommFinalize(ncclComm* comm) {
  const bool never = is_set("FAKE_NCCL_FINALIZE", "never");
  comm->push([comm, never] { never ? comm->hang() : static_cast<void>(comm->barrier()); });
  return kInProgress;
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
  return enqueue(comm, type, op, stream, [=] { comm->collect(send, recv, first, count, true); });
}

int ncclAllGather(const float* send, float* recv, size_t count, int type, ncclComm* comm,
                  void* stream) {
  return enqueue(comm, type, kSum, stream, [=] { comm->collect(send, recv, 0, count, false); });
}

int ncclAllReduce(const float* send, float* recv, size_t count, int type, int op, ncclComm* comm,
                  void* stream) {
  return enqueue(comm, type, op, stream, [=] { comm->collect(send, recv, 0, count, true); });
}

int ncclGroupStart() {
  ++depth;
  return kSuccess;
}

int ncclGroupEnd() {
  if (--depth > 0) return kSuccess;
  const auto jobs = std::move(group);
  group.clear();
  for (const auto& [comm, job] : jobs) comm->push(job);
  return jobs.empty() ? kSuccess : kInProgress;
}

const char* ncclGetErrorString(int result) {
  return result == kUnhandledCuda     ? "unhandled cuda error"
         : result == kInvalidArgument ? "invalid argument"
         : result == kRemote          ? "remote process exited or there was a network error"
                                      : "no error";
}

const char* ncclGetLastError(ncclComm*) { return last_error.c_str(); }

int fake_max_ctas() { return last_max_ctas; }
int fake_alive() {
  const std::lock_guard lock(worlds_mutex);
  return alive;
}
int fake_group_depth() { return depth; }

}  // extern "C"
