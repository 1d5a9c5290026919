// Streams as threads.
#include "device/cpu_runtime.h"

#include <sched.h>

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
#include <thread>

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

using EventPtr = std::shared_ptr<CpuEvent>;  // streams may be on their way to a destroyed event

const EventPtr& event_of(DeviceRuntime::Event event) { return *static_cast<EventPtr*>(event); }

uint64_t recorded(CpuEvent& event) {
  const std::lock_guard lock(event.mutex);
  return event.recorded;
}

// On the stream itself, or on the one thread of all callbacks, which the stream waits for.
void push_flag_operation(DeviceRuntime::Stream stream, bool callback, std::function<void()> run) {
  if (!callback) return CpuStream::of(stream).push(std::move(run));
  static auto* callbacks = new CpuStream;  // never destroyed, as the default stream
  CpuStream::of(stream).push([run = std::move(run)] {
    std::promise<void> ended;
    callbacks->push([&] {
      run();
      ended.set_value();
    });
    ended.get_future().wait();
  });
}

// As a GPU compares: flags may wrap around.
bool has_reached(const DeviceRuntime::Flag& flag, uint32_t value) {
  return static_cast<int32_t>(flag.load(std::memory_order_acquire) - value) >= 0;
}

}  // namespace

std::byte* CpuRuntime::allocate_pinned(size_t bytes) {
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  void* memory = std::aligned_alloc(kPage, size);
  if (!memory) throw std::bad_alloc();
  std::memset(memory, 0, size);
  return static_cast<std::byte*>(memory);
}

void CpuRuntime::free_pinned(std::byte* memory) noexcept { std::free(memory); }

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
  CpuStream::of(stream).push([shared, number] {
    const std::lock_guard lock(shared->mutex);
    shared->passed = number;
    shared->reached.notify_all();
  });
}

void CpuRuntime::wait(Stream stream, Event event) {
  const EventPtr& shared = event_of(event);
  CpuStream::of(stream).push([shared, number = recorded(*shared)] { shared->await(number); });
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
  CpuStream::of(stream).push([=] { std::memcpy(to, from, bytes); });
}

void CpuRuntime::write_flag(Flag* flag, uint32_t value, Stream stream) {
  push_flag_operation(stream, callbacks_, [=] { flag->store(value, std::memory_order_release); });
}

void CpuRuntime::wait_flag(Flag* flag, uint32_t value, Stream stream) {
  push_flag_operation(stream, callbacks_, [=] {
    constexpr int kYields = 20;
    for (int tries = 0; !has_reached(*flag, value); ++tries) {
      if (tries < kYields) {
        ::sched_yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
  });
}

}  // namespace hier
