// What a group asks of a device: streams, events, pinned memory, copies, and flags by which streams
// and host threads wait for each other. Two things implement it: CUDA (csrc/cuda/runtime.h), and
// the CPU (cpu_runtime.h), so that all that is built on it runs, and is checked, without a GPU.
//
// Every call but finished and synchronize returns at once. What is enqueued on a stream runs in
// order. Any thread may call; calls throw CudaError, and UsageError where a stream cannot be used.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "reduce/reduce.h"

namespace hier {

class DeviceRuntime {
 public:
  using Stream = void*;  // a cudaStream_t
  using Event = void*;
  using Flag = std::atomic<uint32_t>;  // in pinned memory
  // By which other processes of this machine find device memory.
  using SharedHandle = std::array<std::byte, 64>;

  virtual ~DeviceRuntime() = default;

  // As a stream compares: flags may wrap around.
  static bool has_reached(const Flag& flag, uint32_t value) {
    return static_cast<int32_t>(flag.load(std::memory_order_acquire) - value) >= 0;
  }

  virtual const char* name() const = 0;
  // How streams and host threads are chained: for reports. Memory operations are tried once, on
  // the device that is current then.
  virtual const char* chaining() = 0;
  // Whether other streams go on while one waits for a flag. Callbacks share one thread: a flag that
  // is written behind a wait would never be.
  virtual bool waits_are_apart() = 0;
  // On which device a pointer lies. Throws UsageError for host memory.
  virtual int device_of(const void* pointer) = 0;
  // This thread's current device, which default streams belong to. Asking makes no context.
  virtual int current_device() = 0;
  // Makes a device the current one; this process has a context there from then on.
  virtual void set_device(int device) = 0;
  virtual bool has_context(int device) = 0;

  virtual std::byte* allocate_pinned(size_t bytes) = 0;  // zero
  virtual void free_pinned(std::byte* memory) noexcept = 0;
  // Makes host memory that processes share pinned, for flags.
  virtual void register_pinned(std::byte* memory, size_t bytes) = 0;
  virtual void unregister_pinned(std::byte* memory) noexcept = 0;

  virtual std::byte* allocate(int device, size_t bytes) = 0;
  virtual void free(std::byte* memory) noexcept = 0;
  // Device memory that others can map, and theirs. Fails where the devices are no peers.
  virtual std::byte* allocate_shared(int device, size_t bytes, SharedHandle& handle) = 0;
  virtual void free_shared(std::byte* memory) noexcept = 0;
  virtual std::byte* open_shared(int device, const SharedHandle& handle) = 0;
  virtual void close_shared(std::byte* memory) noexcept = 0;

  virtual Stream create_stream(int device) = 0;
  virtual void destroy_stream(Stream stream) noexcept = 0;  // what is enqueued still runs
  virtual Event create_event(int device) = 0;
  virtual void destroy_event(Event event) noexcept = 0;

  virtual void record(Event event, Stream stream) = 0;
  virtual void wait(Stream stream, Event event) = 0;  // what follows on stream comes after event
  virtual bool finished(Event event) = 0;             // true if it was never recorded
  virtual void synchronize(Event event) = 0;          // blocks the calling thread

  virtual void copy(void* to, const void* from, size_t bytes, Stream stream) = 0;
  // As hier::reduce_many, on device memory.
  virtual void reduce_many(DType dtype, ReduceOp op, std::span<void* const> outs,
                           std::span<const void* const> sources, size_t count, int divisor,
                           Stream stream) = 0;
  // In stream order, behind all that was enqueued before: what those wrote is visible to a thread
  // that has seen the flag.
  virtual void write_flag(Flag* flag, uint32_t value, Stream stream) = 0;
  // The stream goes on once the flag has reached value. No deadline: a host thread must set it.
  virtual void wait_flag(Flag* flag, uint32_t value, Stream stream) = 0;
};

// Makes a device this thread's current one for a while: kernels are launched on it. A thread that
// never chose a device would go back to device 0, and make a context there, hundreds of MB that
// nobody asked for: it stays, unless device 0 has a context already.
class CurrentDevice {
 public:
  CurrentDevice(DeviceRuntime& runtime, int device)
      : runtime_(runtime), before_(runtime.current_device()), changed_(before_ != device) {
    if (changed_) runtime_.set_device(device);
  }
  ~CurrentDevice() {
    try {
      if (changed_ && runtime_.has_context(before_)) runtime_.set_device(before_);
    } catch (...) {
      // A device that has failed.
    }
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  DeviceRuntime& runtime_;
  const int before_;
  const bool changed_;
};

}  // namespace hier
