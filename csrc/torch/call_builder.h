// From tensors to calls of the core: checks, dtypes, staging of what is not contiguous.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "torch/device_streams.h"
#include "torch/elements.h"
#include "torch/staging.h"
#include "torch/torch_work.h"

namespace hier::torch_backend {

using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// Whether the core can work in the tensor's own memory. (Of host memory that is not aligned it
// makes its own copy.)
inline bool is_plain(const at::Tensor& tensor) {
  return !tensor.is_conj() && !tensor.is_neg() && tensor.is_contiguous() &&
         (tensor.is_cpu() || is_aligned(tensor.const_data_ptr(), tensor.element_size()));
}

// A tensor in host memory itself if the core can work there, else a copy.
inline at::Tensor plain(const at::Tensor& tensor) {
  return tensor.resolve_conj().resolve_neg().contiguous();
}

// All bytes from a tensor's first element to its last.
inline ByteRange range_of(const at::Tensor& tensor, bool written) {
  if (tensor.numel() == 0) return {};
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
  const auto bytes = static_cast<size_t>(last + 1) * tensor.element_size();
  return ByteRange::of(tensor.const_data_ptr(), bytes, written);
}

// One collective or message being made ready: checks arguments, stages tensors, hands it to the
// group.
class CallBuilder {
 public:
  CallBuilder(const DeviceBackend& backend, OpType type, const char* title, Tensors inputs,
              Tensors outputs)
      : group_(backend.group()),
        rank_(backend.getRank()),
        size_(backend.getSize()),
        operation_(
            std::make_unique<Operation>(type, title, std::move(inputs), std::move(outputs))) {
    check(operation_->inputs, "input");
    check(operation_->outputs, "output");
    const bool empty = operation_->inputs.empty() && operation_->outputs.empty();
    if (!empty && !device().is_cpu()) operation_->streams = backend.streams_of(device());
    if (type == OpType::SEND || type == OpType::RECV || type == OpType::RECVANYSOURCE) return;
    if (type == OpType::BARRIER) {
      comes_after({kEverything});
    } else {
      std::vector<ByteRange> ranges;
      for (const auto& tensor : operation_->outputs) ranges.push_back(range_of(tensor, true));
      for (size_t i = 0; i < operation_->inputs.size(); ++i) {
        const auto& tensor = operation_->inputs[i];
        const bool in_place =
            i < operation_->outputs.size() && tensor.is_same(operation_->outputs[i]);
        if (!in_place) ranges.push_back(range_of(tensor, false));
      }
      comes_after(std::move(ranges));
    }
  }

  int rank() const { return rank_; }
  int size() const { return size_; }

  [[noreturn]] void refuse(const std::string& problem) const {
    throw UsageError(std::string(operation_->title) + " on rank " + std::to_string(rank_) + ": " +
                     problem);
  }

  // For torch's own checks.
  std::function<void(const std::string&)> refusal() const {
    return [this](const std::string& problem) { refuse(problem); };
  }

  void require(bool fine, const char* problem) const {
    if (!fine) refuse(problem);
  }

  Elements elements() const { return elements_of(dtype()); }

  // A plain tensor with what is in `tensor` when the core begins: the tensor itself, or a copy.
  at::Tensor plain_of(const at::Tensor& tensor) {
    return is_plain(tensor) ? tensor : copy_of(tensor);
  }

  at::Tensor copy_of(const at::Tensor& tensor) {
    const at::Tensor copy = staging(tensor.sizes(), tensor.options());
    before([=] { copy.copy_(tensor); });
    return copy;
  }

  // What is to be done with the call's memory before the core works on it, behind the earlier
  // calls on the same memory: at once where there is none. A device does it in stream order.
  template <class Job>
  void before(Job job) {
    const NoAutograd no_autograd;
    if (const auto& streams = operation_->streams) {
      streams->order(streams->current(), streams->in);
      if (!operation_->earlier.empty()) streams->order(streams->out, streams->in);
      const c10::StreamGuard on_in(streams->in);
      job();
    } else if (operation_->earlier.empty()) {
      job();
    } else {
      operation_->before.emplace_back(std::move(job));
    }
  }

  // In `buffer`, which is plain.
  void add(Collective collective, const at::Tensor& buffer, const c10d::ReduceOp* op = nullptr,
           int64_t root = 0, std::vector<size_t> bounds = {}) {
    Call call = call_in(collective, buffer, std::move(bounds));
    call.root = static_cast<int>(root);
    if (op) set_op(call, buffer, *op);
    operation_->batch.add(std::move(call));
  }

  // In the tensor's own memory, or in a copy that is copied back. Returns the one or the other.
  at::Tensor add_in_place(Collective collective, const at::Tensor& tensor,
                          const c10d::ReduceOp* op = nullptr, int64_t root = 0,
                          bool in_copy = false) {
    const at::Tensor buffer = in_copy ? copy_of(tensor) : plain_of(tensor);
    add(collective, buffer, op, root);
    if (!buffer.is_same(tensor)) copy_back(buffer, tensor);
    return buffer;
  }

  // Both plain; bounds as in Call.
  void add_alltoall(const at::Tensor& output, std::vector<size_t> output_bounds,
                    const at::Tensor& input, std::vector<size_t> input_bounds) {
    Call call = call_in(Collective::alltoall, output, std::move(output_bounds));
    call.input = input.data_ptr();
    call.input_count = count_of(input);
    call.input_bounds = std::move(input_bounds);
    operation_->buffers.push_back(input);
    operation_->batch.add(std::move(call));
  }

  void add_message(bool send, const at::Tensor& tensor, int peer, int tag) {
    // A message goes through the host: its sender, and who waits for it, wait for the copy as well.
    const at::Tensor buffer = plain(tensor.cpu());
    operation_->streams = nullptr;
    Message message;
    message.send = send;
    message.peer = peer;
    message.tag = tag;
    message.data = buffer.data_ptr();
    message.count = count_of(buffer);
    message.dtype = elements().dtype;
    operation_->buffers.push_back(buffer);
    operation_->batch.add(message);
    if (!send && !buffer.is_same(tensor)) copy_back(buffer, tensor);
  }

  void copy_back(const at::Tensor& from, const at::Tensor& to) {
    operation_->copies.emplace_back(from, to);
  }

  // What is to be done at the end, behind all copies, to fill these outputs.
  void afterwards(Tensors outputs, std::function<void()> job) {
    operation_->outputs = std::move(outputs);
    operation_->afterwards = std::move(job);
  }

  template <class Options>
  WorkPtr go(uint64_t sequence, const Options& options) {
    const double timeout = seconds_of(options.timeout);
    const bool on_device = operation_->streams != nullptr;
    auto work = c10::make_intrusive<TorchWork>(rank_, size_, std::move(operation_), sequence);
    if (on_device) {
      work->start_on_device(group_, timeout);
      if (!options.asyncOp) work->wait(kNoTimeout);
    } else if (options.asyncOp) {
      work->start(group_, timeout);
    } else {
      work->run(*group_, timeout);
    }
    return work;
  }

  WorkPtr start() {  // of a message
    auto work = c10::make_intrusive<TorchWork>(rank_, size_, std::move(operation_), 0);
    work->start(group_, -1);
    return work;
  }

 private:
  const at::Tensor& first() const {
    const auto& tensors = operation_->inputs.empty() ? operation_->outputs : operation_->inputs;
    if (tensors.empty()) refuse("has no tensors");
    return tensors.front();
  }
  at::ScalarType dtype() const { return first().scalar_type(); }
  c10::Device device() const { return first().device(); }

  static size_t count_of(const at::Tensor& buffer) {
    return static_cast<size_t>(buffer.numel()) * elements_of(buffer.scalar_type()).per_element;
  }

  void check(const Tensors& tensors, const char* argument) const {
    for (size_t i = 0; i < tensors.size(); ++i) {
      check(tensors[i], "at index " + std::to_string(i) + ": the " + argument + " tensor ");
    }
  }

  void check(const at::Tensor& tensor, const std::string& the) const {
    if (!tensor.defined()) refuse("invalid tensor " + the + "is undefined");
    if (tensor.layout() == at::kMkldnn) {
      refuse(the + "has the layout of MKL-DNN; pass tensor.to_dense()");
    }
    if (tensor.layout() != at::kStrided) {
      refuse("invalid tensor layout " + the +
             "is sparse; all_reduce alone takes sparse tensors, and no dense ones beside them; "
             "pass tensor.to_dense()");
    }
    if (tensor.is_nested()) refuse(the + "is nested; pass its tensors one by one");
    if (tensor.is_quantized()) refuse(the + "is quantized; pass tensor.int_repr()");
    if (!tensor.has_storage()) {
      refuse(the + "has no memory of its own, as inside a transformation of torch.func; call the " +
             "collective outside");
    }
    if (tensor.is_cpu() && tensor.numel() > 0 && tensor.const_data_ptr() == nullptr) {
      refuse(the + "has no memory, as a FakeTensor has none; pass one that has data");
    }
    if (tensor.device() != device()) {
      refuse("invalid tensor " + the + "is on " + tensor.device().str() + ", the first one is on " +
             device().str() + "; tensors must all be on the same device");
    }
    if (tensor.scalar_type() != dtype()) {
      refuse("invalid tensor type " + the + "is " + c10::toString(tensor.scalar_type()) +
             ", the first one is " + c10::toString(dtype()) +
             "; tensors must all have the same type");
    }
  }

  Call call_in(Collective collective, const at::Tensor& buffer, std::vector<size_t> bounds) {
    Call call;
    call.collective = collective;
    call.data = buffer.data_ptr();
    call.count = count_of(buffer);
    call.bounds = std::move(bounds);
    call.dtype = elements_of(buffer.scalar_type()).dtype;
    call.shape = shape_hash({buffer.sizes().data(), buffer.sizes().size()});
    if (operation_->streams) call.device = operation_->streams->place();
    operation_->buffers.push_back(buffer);
    return call;
  }

  void set_op(Call& call, const at::Tensor& buffer, const c10d::ReduceOp& op) {
    if (!elements().reducible) {
      refuse(std::string("cannot reduce ") + c10::toString(buffer.scalar_type()));
    }
    require(!buffer.is_complex() || is_linear(op),
            "complex tensors have SUM, AVG, PREMUL_SUM only");
    call.op = op_of(op);
    if (op == c10d::ReduceOp::AVG && at::isIntegralType(buffer.scalar_type(), false)) {
      call.op = ReduceOp::sum;  // the core's mean is of floats; torch's of integers truncates
      operation_->sums_to_divide.push_back(buffer);
    }
    if (op != c10d::ReduceOp::PREMUL_SUM) return;
    const auto* factor = static_cast<c10d::NCCLPreMulSumSupplement*>(op.supplement_.get());
    require(factor != nullptr, "PREMUL_SUM has no factor");
    if (factor->tensor_factor.defined()) {
      before([buffer, by = factor->tensor_factor] { buffer.mul_(by); });
    } else {
      before([buffer, by = factor->double_factor] { buffer.mul_(by); });
    }
  }

  void comes_after(std::vector<ByteRange> ranges) {
    operation_->earlier = group_->uses_of(ranges);
    operation_->ranges = std::move(ranges);
  }

  const std::shared_ptr<Group> group_;
  const int rank_, size_;
  std::unique_ptr<Operation> operation_;
};

}  // namespace hier::torch_backend
