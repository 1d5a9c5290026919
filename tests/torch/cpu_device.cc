// A torch device whose streams are those of hier::CpuRuntime, so that torch's side of GPU tensors
// is tested without a GPU.
//
// It is as strict as CUDA: copies and operations in place run on the current stream while the host
// goes on, and freed memory is overwritten once the streams that it was recorded on get there. A
// dependency that is missing shows as a wrong result.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/_sparse_coo_tensor_with_dims_and_tensors_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "device/cpu_runtime.h"

namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kType, 0);

hier::CpuRuntime& runtime() {
  static auto* runtime = new hier::CpuRuntime(hier::CpuRuntime::Flags::atomics);
  return *runtime;
}

thread_local c10::StreamId current_stream = 0;

void* handle_of(c10::StreamId stream) { return reinterpret_cast<void*>(stream); }

void synchronize(c10::StreamId stream) {
  void* event = runtime().create_event(0);
  runtime().record(event, handle_of(stream));
  runtime().synchronize(event);
  runtime().destroy_event(event);
}

// Blocks go back to where they came from in the order of the stream that allocated them, behind all
// streams that they were recorded on. Their memory is never unmapped: who uses it too late reads
// what is wrong, and does not crash.
class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    constexpr size_t kAlign = 64;
    if (bytes == 0) return {nullptr, kDevice};
    const size_t size = (bytes + kAlign - 1) / kAlign * kAlign;
    const std::lock_guard lock(mutex_);
    auto& free = free_[{current_stream, size}];
    void* data = free.empty() ? std::aligned_alloc(kAlign, size) : free.back();
    if (!free.empty()) free.pop_back();
    used_[data] = {current_stream, size, {}};
    // Behind the streams of the last owner's: it has poisoned the block by then.
    runtime().launch([=] { std::memset(data, kPoison, size); }, handle_of(current_stream));
    return {data, data, &give_back, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    runtime().copy(to, from, bytes, handle_of(current_stream));
  }

  void record(void* data, c10::StreamId stream) {
    const std::lock_guard lock(mutex_);
    const auto found = used_.find(data);
    if (found != used_.end()) found->second.users.insert(stream);
  }
  // On how many streams a block was recorded.
  size_t users(void* data) {
    const std::lock_guard lock(mutex_);
    return used_.at(data).users.size();
  }

 private:
  static constexpr int kPoison = 0xa5;
  struct Block {
    c10::StreamId owner;
    size_t size;
    std::set<c10::StreamId> users;
  };
  static void give_back(void* data);

  std::mutex mutex_;  // guards both
  std::map<void*, Block> used_;
  std::map<std::pair<c10::StreamId, size_t>, std::vector<void*>> free_;
};

Allocator& allocator() {
  static auto* allocator = new Allocator;
  return *allocator;
}

void Allocator::give_back(void* data) {
  Allocator& self = allocator();
  const std::lock_guard lock(self.mutex_);
  const Block block = self.used_.at(data);
  self.used_.erase(data);
  for (const auto user : block.users) {
    void* event = runtime().create_event(0);
    runtime().record(event, handle_of(user));
    runtime().wait(handle_of(block.owner), event);
    runtime().destroy_event(event);
  }
  runtime().launch([=] { std::memset(data, kPoison, block.size); }, handle_of(block.owner));
  self.free_[{block.owner, block.size}].push_back(data);
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }

  c10::Stream getStream(c10::Device) const override { return stream(current_stream); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(0); }
  c10::Stream getNewStream(c10::Device, int) const override {
    return stream(reinterpret_cast<c10::StreamId>(runtime().create_stream(0)));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    static std::atomic<size_t> next{0};
    static const auto* pool = new std::vector<c10::Stream>{
        getNewStream(device, 0), getNewStream(device, 0), getNewStream(device, 0)};
    return (*pool)[next++ % pool->size()];
  }
  c10::Stream exchangeStream(c10::Stream to) const override {
    return stream(std::exchange(current_stream, to.id()));
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return handle_of(stream.id());
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    if (!*event) *event = runtime().create_event(0);
    runtime().record(*event, handle_of(stream.id()));
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event) runtime().wait(handle_of(stream.id()), event);
  }
  bool queryEvent(void* event) const override { return !event || runtime().finished(event); }
  void synchronizeEvent(void* event) const override {
    if (event) runtime().synchronize(event);
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    if (event) runtime().destroy_event(event);
  }
  bool queryStream(const c10::Stream& stream) const override {
    void* event = runtime().create_event(0);
    runtime().record(event, handle_of(stream.id()));
    const bool finished = runtime().finished(event);
    runtime().destroy_event(event);
    return finished;
  }
  void synchronizeStream(const c10::Stream& stream) const override { synchronize(stream.id()); }
  void synchronizeDevice(const c10::DeviceIndex) const override { synchronize(current_stream); }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    allocator().record(data.get(), stream.id());
  }

 private:
  static c10::Stream stream(c10::StreamId id) {
    return c10::Stream(c10::Stream::UNSAFE, kDevice, id);
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  at::Device getDeviceFromPtr(void*) const override { return kDevice; }
};

// The same memory as a CPU tensor; to be touched in stream order. Owns nothing.
at::Tensor in_memory(const at::Tensor& tensor) {
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(),
                       tensor.options().device(at::kCPU));
}

void on_current_stream(std::function<void()> operation) {
  runtime().launch(
      [operation = std::move(operation)] {
        const at::NoGradGuard no_grad;
        const at::AutoDispatchBelowADInplaceOrView below_autograd;
        operation();
      },
      handle_of(current_stream));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (to.numel() == 0) return to;
  // The source of a copy from the host may change once the call has returned.
  const at::Tensor source = from.is_cpu() ? from.clone() : in_memory(from);
  const at::Tensor target = to.is_cpu() ? to.detach() : in_memory(to);
  on_current_stream([=] { target.copy_(source); });
  if (to.is_cpu() && !non_blocking) synchronize(current_stream);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &allocator(), keys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &allocator(), keys,
                                           c10::dtype_or_default(dtype));
}

const at::Tensor& resize(const at::Tensor& self, at::IntArrayRef size,
                         std::optional<at::MemoryFormat>) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_sizes_contiguous(size);
  const size_t bytes = (self.storage_offset() + self.numel()) * self.itemsize();
  auto* storage = tensor->unsafe_storage().unsafeGetStorageImpl();
  if (bytes <= storage->nbytes()) return self;
  c10::DataPtr data = allocator().allocate(bytes);
  if (storage->nbytes()) allocator().copy_data(data.get(), storage->data(), storage->nbytes());
  storage->set_data_ptr(std::move(data));
  storage->set_nbytes(bytes);
  return self;
}

at::Tensor& set_source(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size,
                       at::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

at::Tensor as_strided(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride,
                      std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

// What an operation that runs later may use of an argument.
c10::IValue for_later(const c10::IValue& value) {
  const auto one = [](const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    return tensor.is_cpu() ? tensor.clone() : in_memory(tensor);
  };
  if (value.isTensor()) return one(value.toTensor());
  if (!value.isTensorList()) return value;
  c10::List<at::Tensor> list;
  for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(one(tensor));
  return list;
}

// What an operation writes, if it makes nothing new: nothing that may have to grow, either.
torch::jit::Stack written(const c10::FunctionSchema& schema, c10::ArrayRef<c10::IValue> arguments) {
  torch::jit::Stack found;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (!alias || !alias->isWrite()) continue;
    if (arguments[i].isTensor() && arguments[i].toTensor().numel() == 0) return {};
    found.push_back(arguments[i]);
  }
  const bool all = schema.returns().empty() || schema.returns().size() == found.size();
  return all ? found : torch::jit::Stack();
}

// Operations on tensors that are there run on the stream; all others wait for it and run on the
// host.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto arguments = torch::jit::last(*stack, op.schema().arguments().size());
  const torch::jit::Stack results = written(op.schema(), arguments);
  if (results.empty()) return at::native::cpu_fallback(op, stack);
  torch::jit::Stack later;
  for (const auto& argument : arguments) later.push_back(for_later(argument));
  on_current_stream([op, later]() mutable { op.callBoxed(&later); });
  torch::jit::drop(*stack, op.schema().arguments().size());
  if (!op.schema().returns().empty()) stack->insert(stack->end(), results.begin(), results.end());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("view", at::native::view);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage_storage_offset", set_source);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
}

TORCH_LIBRARY_IMPL(aten, SparsePrivateUse1, m) {
  m.impl("_sparse_coo_tensor_with_dims_and_tensors",
         at::native::new_with_dims_and_tensor_sparse_symint);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

// Keeps the current stream busy until it is opened.
class Gate {
 public:
  Gate() { runtime().wait_flag(flag_, 1, handle_of(current_stream)); }
  void open() { flag_->store(1, std::memory_order_release); }

 private:
  hier::DeviceRuntime::Flag* const flag_ = new hier::DeviceRuntime::Flag(0);  // kept: streams look
};

}  // namespace

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);
}

PYBIND11_MODULE(cpu_device, m) {
  m.doc() = "Registers the device when it is imported.";
  c10::SetAllocator(kType, &allocator());
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  m.def("users", [](uintptr_t data) { return allocator().users(reinterpret_cast<void*>(data)); });
  py::class_<Gate>(m, "Gate").def(py::init()).def("open", &Gate::open);
}
