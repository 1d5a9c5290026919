// From tensors to calls of the core: checks, dtypes, staging of what is not contiguous.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "torch/device.h"
#include "torch/elements.h"
#include "torch/work.h"

namespace hier::torch_backend {

using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// The tensor itself if the core can work in its memory, else a copy.
inline at::Tensor plain(const at::Tensor& tensor) {
  return tensor.resolve_conj().resolve_neg().contiguous();
}

// One collective or message being made ready: checks arguments, stages tensors, hands it to the
// group.
class Maker {
 public:
  Maker(const DeviceBackend& backend, OpType type, const char* title, Tensors inputs,
        Tensors outputs)
      : rank_(backend.getRank()),
        size_(backend.getSize()),
        operation_(
            std::make_unique<Operation>(type, title, std::move(inputs), std::move(outputs))) {
    for (const auto& tensor : operation_->inputs) check(tensor, "input");
    for (const auto& tensor : operation_->outputs) check(tensor, "output");
    const bool empty = operation_->inputs.empty() && operation_->outputs.empty();
    if (!empty && !device().is_cpu()) operation_->side = backend.side_of(device());
  }

  int rank() const { return rank_; }
  int size() const { return size_; }

  [[noreturn]] void refuse(const std::string& problem) const {
    throw UsageError(std::string(operation_->title) + " on rank " + std::to_string(rank_) + ": " +
                     problem);
  }

  void require(bool fine, const char* problem) const {
    if (!fine) refuse(problem);
  }

  Elements elements() const { return elements_of(dtype()); }

  // In `buffer`, which is plain.
  void add(Collective collective, const at::Tensor& buffer, const c10d::ReduceOp* op = nullptr,
           int64_t root = 0, std::vector<size_t> bounds = {}) {
    Call call = call_in(collective, buffer, std::move(bounds));
    call.root = static_cast<int>(root);
    if (op) set_op(call, buffer, *op);
    operation_->batch.add(std::move(call));
  }

  // In the tensor's own memory, or in a copy that is copied back.
  void add_in_place(Collective collective, const at::Tensor& tensor,
                    const c10d::ReduceOp* op = nullptr, int64_t root = 0) {
    const at::Tensor buffer = plain(tensor);
    add(collective, buffer, op, root);
    if (!buffer.is_same(tensor)) copy_back(buffer, tensor);
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
    operation_->side = nullptr;
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
  WorkPtr go(const std::shared_ptr<Group>& group, uint64_t sequence, const Options& options) {
    const double timeout = seconds_of(options.timeout);
    const bool on_device = operation_->side != nullptr;
    auto work = c10::make_intrusive<TorchWork>(rank_, size_, std::move(operation_), sequence);
    if (on_device) {
      work->start_on_device(group, timeout);
      if (!options.asyncOp) work->wait(kNoTimeout);
    } else if (options.asyncOp) {
      work->start(group, timeout);
    } else {
      work->run(*group, timeout);
    }
    return work;
  }

  WorkPtr start(const std::shared_ptr<Group>& group) {  // of a message
    auto work = c10::make_intrusive<TorchWork>(rank_, size_, std::move(operation_), 0);
    work->start(group, -1);
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

  void check(const at::Tensor& tensor, const char* argument) const {
    const std::string the = std::string("the ") + argument + " tensor ";
    if (!tensor.defined()) refuse(the + "is undefined");
    if (tensor.layout() != at::kStrided) {
      refuse(the + "is sparse; all_reduce alone takes sparse tensors, pass tensor.to_dense()");
    }
    if (tensor.device() != device()) {
      refuse(the + "is on " + tensor.device().str() + ", the first one is on " + device().str() +
             "; all must be on one device");
    }
    if (tensor.scalar_type() != dtype()) {
      refuse(the + "is " + c10::toString(tensor.scalar_type()) + ", the first one is " +
             c10::toString(dtype()) + "; all must be of one dtype");
    }
  }

  Call call_in(Collective collective, const at::Tensor& buffer, std::vector<size_t> bounds) {
    Call call;
    call.collective = collective;
    call.data = buffer.data_ptr();
    call.count = count_of(buffer);
    call.bounds = std::move(bounds);
    call.dtype = elements_of(buffer.scalar_type()).dtype;
    if (operation_->side) call.device = operation_->side->place();
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
    const Quiet quiet;
    const auto* factor = static_cast<c10d::NCCLPreMulSumSupplement*>(op.supplement_.get());
    require(factor != nullptr, "PREMUL_SUM has no factor");
    if (factor->tensor_factor.defined()) {
      buffer.mul_(factor->tensor_factor);
    } else {
      buffer.mul_(factor->double_factor);
    }
  }

  const int rank_, size_;
  std::unique_ptr<Operation> operation_;
};

}  // namespace hier::torch_backend
