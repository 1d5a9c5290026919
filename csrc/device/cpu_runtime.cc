// Streams as threads.
#include "device/cpu_runtime.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "base/floating_point.h"
#include "base/mapping.h"
#include "device/flag_trial.h"

namespace hier {

namespace {

constexpr size_t kPage = 4096;

// One thread runs what is enqueued, in order. As with CUDA, the handles 0, 1 and 2 are default
// streams: here one more stream, that all share.
class CpuStream {
 public:
  using Operation = std::function<void()>;

  static CpuStream& of(DeviceRuntime::Stream stream) {
    constexpr uintptr_t kLastDefault = 2;
    if (reinterpret_cast<uintptr_t>(stream) > kLastDefault) return *static_cast<CpuStream*>(stream);
    static auto* default_stream = new CpuStream;  // never destroyed: it may be busy at exit
    return *default_stream;
  }

  CpuStream() {
    std::thread([state = state_] { main(*state); }).detach();
  }
  ~CpuStream() {
    push([state = state_] { state->last = true; });
  }

  void push(Operation operation) {
    const std::lock_guard lock(state_->mutex);
    state_->operations.push_back(std::move(operation));
    state_->more.notify_one();
  }

 private:
  struct State {
    std::mutex mutex;  // guards operations
    std::condition_variable more;
    std::deque<Operation> operations;
    bool last = false;  // touched by the stream's thread alone
  };

  static void main(State& state) {
    const DefaultFloatingPoint floating_point;
    while (!state.last) {
      std::unique_lock lock(state.mutex);
      state.more.wait(lock, [&] { return !state.operations.empty(); });
      const Operation operation = std::move(state.operations.front());
      state.operations.pop_front();
      lock.unlock();
      operation();
    }
  }

  // Shared with the thread, which outlives this object until it has run all that was enqueued.
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

// Counts how often it was recorded, and how often a stream has got there.
struct CpuEvent {
  std::mutex mutex;  // guards both
  std::condition_variable reached;
  uint64_t recorded = 0, passed = 0;

  void await(uint64_t number) {
    std::unique_lock lock(mutex);
    reached.wait(lock, [&] { return passed >= number; });
  }
};

std::atomic<uint64_t> enqueued{0};  // by whom does not matter, nor in which order

CpuStream& count_on(DeviceRuntime::Stream stream) {
  enqueued.fetch_add(1, std::memory_order_relaxed);
  return CpuStream::of(stream);
}

using EventPtr = std::shared_ptr<CpuEvent>;  // streams may be on their way to a destroyed event

const EventPtr& event_of(DeviceRuntime::Event event) { return *static_cast<EventPtr*>(event); }

uint64_t recorded(CpuEvent& event) {
  const std::lock_guard lock(event.mutex);
  return event.recorded;
}

// On the one thread of all callbacks, which the stream waits for.
void push_callback(DeviceRuntime::Stream stream, std::function<void()> run) {
  static auto* callbacks = new CpuStream;  // never destroyed, as the default stream
  count_on(stream).push([run = std::move(run)] {
    std::promise<void> ended;
    callbacks->push([&] {
      run();
      ended.set_value();
    });
    ended.get_future().wait();
  });
}

void await(const DeviceRuntime::Flag& flag, uint32_t value) {
  constexpr int kYields = 20;
  for (int tries = 0; !DeviceRuntime::has_reached(flag, value); ++tries) {
    if (tries < kYields) {
      ::sched_yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
}

// Device memory that is mapped here: this process's own, with its descriptor, and that of others.
class SharedMemory {
 public:
  std::byte* add(std::shared_ptr<SharedMapping> mapping, ino_t file, Fd own) {
    const std::lock_guard lock(mutex_);
    std::byte* data = mapping->data();
    entries_.push_back({std::move(mapping), file, std::move(own)});
    return data;
  }
  void remove(const std::byte* data, bool own) {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
      return entry.mapping->data() == data && static_cast<bool>(entry.own) == own;
    });
    if (found == entries_.end()) return;
    const ino_t file = found->file;
    entries_.erase(found);
    if (own && std::any_of(entries_.begin(), entries_.end(),
                           [&](const Entry& entry) { return entry.file == file; })) {
      ++freed_while_mapped_;
    }
  }
  CpuRuntime::SharedCounts counts() {
    const std::lock_guard lock(mutex_);
    const auto owned = std::count_if(entries_.begin(), entries_.end(),
                                     [](const Entry& entry) { return bool(entry.own); });
    return {static_cast<int>(owned), freed_while_mapped_};
  }

 private:
  struct Entry {
    std::shared_ptr<SharedMapping> mapping;
    ino_t file;
    Fd own;
  };
  std::mutex mutex_;  // guards what follows
  std::vector<Entry> entries_;
  int freed_while_mapped_ = 0;
};

SharedMemory& shared() {
  static auto* memory = new SharedMemory;
  return *memory;
}

ino_t file_of(const Fd& fd) {
  struct stat status{};
  check_errno(::fstat(fd.get(), &status), "fstat of device memory");
  return status.st_ino;
}

thread_local int current = 0;  // device of this thread

// The devices that this process has a context on.
class Contexts {
 public:
  void add(int device) {
    const std::lock_guard lock(mutex_);
    devices_.insert(device);
  }
  bool has(int device) {
    const std::lock_guard lock(mutex_);
    return devices_.contains(device);
  }

 private:
  std::mutex mutex_;  // guards devices_
  std::set<int> devices_;
};

Contexts& contexts() {
  static auto* contexts = new Contexts;
  return *contexts;
}

}  // namespace

int CpuRuntime::current_device() { return current; }

void CpuRuntime::set_device(int device) {
  current = device;
  contexts().add(device);
}

bool CpuRuntime::has_context(int device) { return contexts().has(device); }

std::byte* CpuRuntime::allocate_pinned(size_t bytes) {
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  void* memory = std::aligned_alloc(kPage, size);
  if (!memory) throw std::bad_alloc();
  std::memset(memory, 0, size);
  return static_cast<std::byte*>(memory);
}

void CpuRuntime::free_pinned(std::byte* memory) noexcept { std::free(memory); }

// A handle is the process and descriptor of a memfd, which others open through /proc.
std::byte* CpuRuntime::allocate_shared(int, size_t bytes, SharedHandle& handle) {
  Fd fd(check_errno(::memfd_create("allreduce-device", MFD_CLOEXEC), "memfd_create"));
  check_errno(::ftruncate(fd.get(), static_cast<off_t>(bytes)), "ftruncate of device memory");
  const int32_t place[] = {::getpid(), fd.get()};
  std::memcpy(handle.data(), place, sizeof place);
  auto mapping = SharedMapping::open(fd.get(), bytes);
  const ino_t file = file_of(fd);
  return shared().add(std::move(mapping), file, std::move(fd));
}

void CpuRuntime::free_shared(std::byte* memory) noexcept { shared().remove(memory, true); }

std::byte* CpuRuntime::open_shared(int, const SharedHandle& handle) {
  int32_t place[2];
  std::memcpy(place, handle.data(), sizeof place);
  const std::string path = "/proc/" + std::to_string(place[0]) + "/fd/" + std::to_string(place[1]);
  const Fd fd(check_errno(::open(path.c_str(), O_RDWR | O_CLOEXEC), "open of device memory"));
  return shared().add(SharedMapping::open(fd.get(), 0), file_of(fd), Fd());
}

CpuRuntime::SharedCounts CpuRuntime::shared_counts() { return shared().counts(); }

void CpuRuntime::close_shared(std::byte* memory) noexcept { shared().remove(memory, false); }

DeviceRuntime::Stream CpuRuntime::create_stream(int) { return new CpuStream; }

void CpuRuntime::destroy_stream(Stream stream) noexcept { delete static_cast<CpuStream*>(stream); }

DeviceRuntime::Event CpuRuntime::create_event(int) {
  return new EventPtr(std::make_shared<CpuEvent>());
}

void CpuRuntime::destroy_event(Event event) noexcept { delete static_cast<EventPtr*>(event); }

void CpuRuntime::record(Event event, Stream stream) {
  const EventPtr& shared = event_of(event);
  uint64_t number = 0;
  {
    const std::lock_guard lock(shared->mutex);
    number = ++shared->recorded;
  }
  count_on(stream).push([shared, number] {
    const std::lock_guard lock(shared->mutex);
    shared->passed = std::max(shared->passed, number);  // two streams may get there in any order
    shared->reached.notify_all();
  });
}

void CpuRuntime::wait(Stream stream, Event event) {
  const EventPtr& shared = event_of(event);
  count_on(stream).push([shared, number = recorded(*shared)] { shared->await(number); });
}

bool CpuRuntime::finished(Event event) {
  CpuEvent& e = *event_of(event);
  const std::lock_guard lock(e.mutex);
  return e.passed == e.recorded;
}

void CpuRuntime::synchronize(Event event) {
  CpuEvent& e = *event_of(event);
  e.await(recorded(e));
}

void CpuRuntime::copy(void* to, const void* from, size_t bytes, Stream stream) {
  count_on(stream).push([=] { std::memcpy(to, from, bytes); });
}

void CpuRuntime::reduce_many(DType dtype, ReduceOp op, std::span<void* const> outs,
                             std::span<const void* const> sources, size_t count, int divisor,
                             Stream stream) {
  const std::vector<void*> to(outs.begin(), outs.end());
  const std::vector<const void*> from(sources.begin(), sources.end());
  count_on(stream).push([=] { hier::reduce_many(dtype, op, to, from, count, divisor); });
}

uint64_t CpuRuntime::num_enqueued() { return enqueued.load(std::memory_order_relaxed); }

void CpuRuntime::launch(std::function<void()> kernel, Stream stream) {
  count_on(stream).push(std::move(kernel));
}

void CpuRuntime::write_flag(Flag* flag, uint32_t value, Stream stream) {
  if (by_streams()) return write_by_stream(flag, value, stream);
  push_callback(stream, [=] { flag->store(value, std::memory_order_release); });
}

void CpuRuntime::wait_flag(Flag* flag, uint32_t value, Stream stream) {
  if (by_streams()) return wait_by_stream(flag, value, stream);
  push_callback(stream, [=] { await(*flag, value); });
}

bool CpuRuntime::by_streams() {
  std::call_once(tried_, [this] {
    if (flags_ == Flags::callbacks) return;
    by_streams_ = flags_work(
        *this, current_device(),
        [this](Flag* flag, uint32_t value, Stream stream) { write_by_stream(flag, value, stream); },
        [this](Flag* flag, uint32_t value, Stream stream) { wait_by_stream(flag, value, stream); });
  });
  return by_streams_;
}

void CpuRuntime::write_by_stream(Flag* flag, uint32_t value, Stream stream) const {
  if (flags_ == Flags::lost) return;
  if (flags_ == Flags::refused) throw CudaError("a write of a flag: not supported");
  count_on(stream).push([=] { flag->store(value, std::memory_order_release); });
}

void CpuRuntime::wait_by_stream(Flag* flag, uint32_t value, Stream stream) const {
  count_on(stream).push([=] { await(*flag, value); });
}

}  // namespace hier
