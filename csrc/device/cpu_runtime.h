// A device that is the CPU: a stream is a thread, an event a number, a flag an atomic. It has the
// concurrency of a GPU's streams, so the tests, under ThreadSanitizer too, meet the same orders.
#pragma once

#include <functional>
#include <mutex>

#include "device/runtime.h"

namespace hier {

class CpuRuntime final : public DeviceRuntime {
 public:
  // How flags are written and awaited.
  enum class Flags {
    atomics,    // by the streams, as by memory operations
    callbacks,  // by one thread for all streams, as by a driver without memory operations
    lost,       // as atomics, but what streams write is not seen: a trial finds it
    refused,    // as atomics, but each throws CudaError
  };
  explicit CpuRuntime(Flags flags) : flags_(flags) {}

  const char* name() const override { return "cpu"; }
  const char* chaining() override { return by_streams() ? "atomics" : "host callbacks"; }
  bool waits_are_apart() override { return by_streams(); }
  int device_of(const void*) override { return 0; }
  // Contexts are counted alone: the memory is the same everywhere.
  int current_device() override;
  void set_device(int device) override;
  bool has_context(int device) override;

  std::byte* allocate_pinned(size_t bytes) override;
  void free_pinned(std::byte* memory) noexcept override;
  void register_pinned(std::byte*, size_t) override {}
  void unregister_pinned(std::byte*) noexcept override {}

  std::byte* allocate(int, size_t bytes) override { return allocate_pinned(bytes); }
  void free(std::byte* memory) noexcept override { free_pinned(memory); }
  std::byte* allocate_shared(int device, size_t bytes, SharedHandle& handle) override;
  void free_shared(std::byte* memory) noexcept override;
  std::byte* open_shared(int device, const SharedHandle& handle) override;
  void close_shared(std::byte* memory) noexcept override;

  // Shared memory of this process, and how often it was freed while this process mapped it: an
  // error with CUDA.
  struct SharedCounts {
    int owned, freed_while_mapped;
  };
  static SharedCounts shared_counts();

  Stream create_stream(int device) override;
  void destroy_stream(Stream stream) noexcept override;
  Event create_event(int device) override;
  void destroy_event(Event event) noexcept override;

  void record(Event event, Stream stream) override;
  void wait(Stream stream, Event event) override;
  bool finished(Event event) override;
  void synchronize(Event event) override;

  void copy(void* to, const void* from, size_t bytes, Stream stream) override;
  void reduce_many(DType dtype, ReduceOp op, std::span<void* const> outs,
                   std::span<const void* const> sources, size_t count, int divisor,
                   Stream stream) override;
  void write_flag(Flag* flag, uint32_t value, Stream stream) override;
  void wait_flag(Flag* flag, uint32_t value, Stream stream) override;

  // Operations that were enqueued, of all runtimes: with CUDA each is a call of the driver's.
  static uint64_t num_enqueued();

  // Enqueues a function, as a kernel's launch.
  void launch(std::function<void()> kernel, Stream stream);

 private:
  bool by_streams();
  void write_by_stream(Flag* flag, uint32_t value, Stream stream) const;
  void wait_by_stream(Flag* flag, uint32_t value, Stream stream) const;

  const Flags flags_;
  std::once_flag tried_;
  bool by_streams_ = false;  // written once, by who tries
};

}  // namespace hier
