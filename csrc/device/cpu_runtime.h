// A device that is the CPU: a stream is a thread, an event a number, a flag an atomic. It has the
// concurrency of a GPU's streams, so the tests, under ThreadSanitizer too, meet the same orders.
#pragma once

#include <functional>

#include "device/runtime.h"

namespace hier {

class CpuRuntime final : public DeviceRuntime {
 public:
  // With callbacks: flags are handled by one thread for all streams, as by a driver without stream
  // memory operations.
  explicit CpuRuntime(bool callbacks) : callbacks_(callbacks) {}

  const char* name() const override { return "cpu"; }
  const char* chaining() const override { return callbacks_ ? "host callbacks" : "atomics"; }
  bool waits_are_apart() const override { return !callbacks_; }
  int device_of(const void*) override { return 0; }
  int exchange_device(int) override { return 0; }

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

  // Enqueues a function, as a kernel's launch.
  void launch(std::function<void()> kernel, Stream stream);

 private:
  const bool callbacks_;
};

}  // namespace hier
