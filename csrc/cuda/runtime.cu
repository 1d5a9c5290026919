// Streams, events and pinned memory of CUDA. Flags are stream memory operations, which cost no
// multiprocessor and no thread; where the driver lacks them, host callbacks.
#include "cuda/runtime.h"

#include <cuda.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/error.h"
#include "cuda/device.h"
#include "cuda/reduce.h"
#include "device/flag_trial.h"

namespace hier::cuda {

namespace {

using Stream = DeviceRuntime::Stream;
using Flag = DeviceRuntime::Flag;

cudaStream_t raw(Stream stream) { return static_cast<cudaStream_t>(stream); }
// Both are void* to the interface.
cudaEvent_t as_event(DeviceRuntime::Event event) { return static_cast<cudaEvent_t>(event); }

// The driver is not linked: a machine without one loads this module, too. Null where it is missing.
template <class Function>
Function* driver_function(const char* name) {
  constexpr unsigned kVersion = 12000;
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status{};
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &found, kVersion, cudaEnableDefault, &status);
  if (error != cudaSuccess || status != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<Function*>(found);
}

using ValueOperation = CUresult(CUstream, CUdeviceptr, cuuint32_t, unsigned);
using ContextState = CUresult(CUdevice, unsigned*, int*);

constexpr const char* kWrite = "cuStreamWriteValue32";
constexpr const char* kWait = "cuStreamWaitValue32";

struct FlagTask {
  Flag* flag;
  uint32_t value;
};

void CUDART_CB write_callback(void* argument) {
  const std::unique_ptr<FlagTask> task(static_cast<FlagTask*>(argument));
  task->flag->store(task->value, std::memory_order_release);
}

void CUDART_CB wait_callback(void* argument) {
  const std::unique_ptr<FlagTask> task(static_cast<FlagTask*>(argument));
  while (!DeviceRuntime::has_reached(*task->flag, task->value)) {
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

class CudaRuntime final : public DeviceRuntime {
 public:
  explicit CudaRuntime(bool callbacks) {
    if (const std::string reason = why_not(); !reason.empty()) throw CudaError(reason);
    context_state_ = driver_function<ContextState>("cuDevicePrimaryCtxGetState");
    if (callbacks) return;
    write_value_ = driver_function<ValueOperation>(kWrite);
    wait_value_ = driver_function<ValueOperation>(kWait);
  }

  const char* name() const override { return "cuda"; }
  const char* chaining() override {
    return has_memory_operations() ? "stream memory operations" : "host callbacks";
  }
  bool waits_are_apart() override { return has_memory_operations(); }

  int device_of(const void* pointer) override {
    cudaPointerAttributes found{};
    check_cuda(cudaPointerGetAttributes(&found, pointer), "asking on which GPU an array is");
    if (found.type != cudaMemoryTypeDevice && found.type != cudaMemoryTypeManaged) {
      throw UsageError("the array says that it is in GPU memory, but CUDA does not know its place");
    }
    return found.device;
  }

  int current_device() override {
    int device = 0;
    check_cuda(cudaGetDevice(&device), "asking for the current GPU");
    return device;
  }
  void set_device(int device) override { check_cuda(cudaSetDevice(device), "choosing a GPU"); }
  bool has_context(int device) override {
    unsigned flags = 0;
    int active = 0;
    return !context_state_ || context_state_(device, &flags, &active) != CUDA_SUCCESS || active;
  }

  std::byte* allocate_pinned(size_t bytes) override {
    void* memory = nullptr;
    check_cuda(cudaHostAlloc(&memory, bytes, cudaHostAllocPortable | cudaHostAllocMapped),
               "allocating pinned memory");
    std::memset(memory, 0, bytes);
    return static_cast<std::byte*>(memory);
  }
  void free_pinned(std::byte* memory) noexcept override { (void)cudaFreeHost(memory); }
  void register_pinned(std::byte* memory, size_t bytes) override {
    check_cuda(cudaHostRegister(memory, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped),
               "pinning memory that the ranks of a node share");
  }
  void unregister_pinned(std::byte* memory) noexcept override { (void)cudaHostUnregister(memory); }

  std::byte* allocate(int device, size_t bytes) override {
    const CurrentDevice current(*this, device);
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, bytes), "allocating GPU memory");
    return static_cast<std::byte*>(memory);
  }
  void free(std::byte* memory) noexcept override { (void)cudaFree(memory); }
  std::byte* allocate_shared(int device, size_t bytes, SharedHandle& handle) override {
    static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(SharedHandle));
    const CurrentDevice current(*this, device);
    void* memory = nullptr;
    cudaIpcMemHandle_t found{};
    cudaError_t error = cudaMalloc(&memory, bytes);
    if (error == cudaSuccess) error = cudaIpcGetMemHandle(&found, memory);
    if (error != cudaSuccess) (void)cudaFree(memory);
    check_cuda(error, "allocating GPU memory for the ranks of a node");
    std::memcpy(handle.data(), &found, sizeof found);
    return static_cast<std::byte*>(memory);
  }
  void free_shared(std::byte* memory) noexcept override { (void)cudaFree(memory); }

  std::byte* open_shared(int device, const SharedHandle& handle) override {
    const CurrentDevice current(*this, device);
    cudaIpcMemHandle_t theirs{};
    std::memcpy(&theirs, handle.data(), sizeof theirs);
    void* memory = nullptr;
    check_cuda(cudaIpcOpenMemHandle(&memory, theirs, cudaIpcMemLazyEnablePeerAccess),
               "mapping the GPU memory of another rank");
    return static_cast<std::byte*>(memory);
  }
  void close_shared(std::byte* memory) noexcept override { (void)cudaIpcCloseMemHandle(memory); }

  Stream create_stream(int device) override {
    const CurrentDevice current(*this, device);
    cudaStream_t stream = nullptr;
    int least = 0, greatest = 0;  // a reduction must not queue behind the blocks of backprop
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for priorities");
    check_cuda(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest),
               "creating a stream");
    return stream;
  }
  void destroy_stream(Stream stream) noexcept override { (void)cudaStreamDestroy(raw(stream)); }

  Event create_event(int device) override {
    const CurrentDevice current(*this, device);
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
    return event;
  }
  void destroy_event(Event event) noexcept override { (void)cudaEventDestroy(as_event(event)); }

  void record(Event event, Stream stream) override {
    refuse_capture(stream);
    check_cuda(cudaEventRecord(as_event(event), raw(stream)), "recording an event");
  }
  void wait(Stream stream, Event event) override {
    check_cuda(cudaStreamWaitEvent(raw(stream), as_event(event), 0),
               "making a stream wait for an event");
  }
  bool finished(Event event) override {
    const cudaError_t state = cudaEventQuery(as_event(event));
    if (state == cudaErrorNotReady) return false;
    check_cuda(state, "asking for an event");
    return true;
  }
  void synchronize(Event event) override {
    check_cuda(cudaEventSynchronize(as_event(event)), "waiting for an event");
  }

  void copy(void* to, const void* from, size_t bytes, Stream stream) override {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, raw(stream)),
               "copying between host and GPU");
  }

  void reduce_many(DType dtype, ReduceOp op, std::span<void* const> outs,
                   std::span<const void* const> sources, size_t count, int divisor,
                   Stream stream) override {
    cuda::reduce_many(dtype, op, outs, sources, count, divisor, stream);
  }
  void write_flag(Flag* flag, uint32_t value, Stream stream) override {
    if (has_memory_operations()) return write_value(flag, value, stream);
    enqueue(write_callback, flag, value, stream);
  }
  void wait_flag(Flag* flag, uint32_t value, Stream stream) override {
    if (has_memory_operations()) return wait_value(flag, value, stream);
    enqueue(wait_callback, flag, value, stream);
  }

 private:
  bool has_memory_operations() {
    std::call_once(tried_, [this] {
      if (!write_value_ || !wait_value_) return;
      const int device = current_device();
      int same_address = 0;  // of registered memory, on the GPU and here
      check_cuda(cudaDeviceGetAttribute(&same_address, cudaDevAttrCanUseHostPointerForRegisteredMem,
                                        device),
                 "asking for the address of pinned memory");
      if (!same_address) return;
      has_memory_operations_ = flags_work(
          *this, device, [this](Flag* f, uint32_t v, Stream s) { write_value(f, v, s); },
          [this](Flag* f, uint32_t v, Stream s) { wait_value(f, v, s); });
    });
    return has_memory_operations_;
  }

  void write_value(Flag* flag, uint32_t value, Stream stream) const {
    check_driver(write_value_(raw(stream), address(flag), value, CU_STREAM_WRITE_VALUE_DEFAULT),
                 "enqueuing a write of a flag");
  }
  void wait_value(Flag* flag, uint32_t value, Stream stream) const {
    check_driver(wait_value_(raw(stream), address(flag), value, CU_STREAM_WAIT_VALUE_GEQ),
                 "enqueuing a wait for a flag");
  }

  // Pinned memory is mapped: its address is the same on the GPU.
  static CUdeviceptr address(Flag* flag) { return reinterpret_cast<CUdeviceptr>(flag); }

  static void enqueue(cudaHostFn_t callback, Flag* flag, uint32_t value, Stream stream) {
    auto task = std::make_unique<FlagTask>(FlagTask{flag, value});
    check_cuda(cudaLaunchHostFunc(raw(stream), callback, task.get()), "enqueuing a host callback");
    (void)task.release();  // the callback's own
  }

  static void check_driver(CUresult result, const char* attempted) {
    if (result == CUDA_SUCCESS) return;
    throw CudaError(std::string(attempted) + ": the driver's error " + std::to_string(result));
  }

  static void refuse_capture(Stream stream) {
    cudaStreamCaptureStatus status{};
    check_cuda(cudaStreamIsCapturing(raw(stream), &status), "asking for a stream's capture");
    if (status == cudaStreamCaptureStatusNone) return;
    throw UsageError(
        "a collective cannot be captured in a CUDA graph, for threads of the host take part in it: "
        "call it outside of the graph");
  }

  ValueOperation* write_value_ = nullptr;
  ValueOperation* wait_value_ = nullptr;
  ContextState* context_state_ = nullptr;
  std::once_flag tried_;
  bool has_memory_operations_ = false;  // written once, by who tries
};

}  // namespace

bool has_memory_operations() {
  return driver_function<ValueOperation>(kWrite) && driver_function<ValueOperation>(kWait);
}

DeviceRuntime& runtime(bool callbacks) {
  if (callbacks) {
    static auto* with_callbacks =
        new CudaRuntime(true);  // never destroyed: streams may outlive main
    return *with_callbacks;
  }
  static auto* runtime = new CudaRuntime(false);  // likewise
  return *runtime;
}

}  // namespace hier::cuda
