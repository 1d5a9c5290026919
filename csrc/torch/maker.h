// From tensors to calls of the core: checks, dtypes, staging of what is not contiguous.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Types.hpp>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "torch/work.h"

namespace hier::torch_backend {

// How the core sees elements of a torch dtype: a complex number is two reals; what it cannot reduce
// it can still move, as bytes.
struct Elements {
  DType dtype;
  size_t per_element = 1;
  bool reducible = true;
};

inline Elements elements_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return {DType::f64};
    case at::kFloat:
      return {DType::f32};
    case at::kHalf:
      return {DType::f16};
    case at::kBFloat16:
      return {DType::bf16};
    case at::kLong:
      return {DType::i64};
    case at::kInt:
      return {DType::i32};
    case at::kShort:
      return {DType::i16};
    case at::kChar:
      return {DType::i8};
    case at::kByte:
      return {DType::u8};
    case at::kBool:
      return {DType::boolean};
    case at::kComplexDouble:
      return {DType::f64, 2};
    case at::kComplexFloat:
      return {DType::f32, 2};
    case at::kComplexHalf:
      return {DType::f16, 2};
    default:
      return {DType::u8, c10::elementSize(type), false};
  }
}

inline ReduceOp op_of(const c10d::ReduceOp& op) {
  switch (op.op_) {
    case c10d::ReduceOp::SUM:
      return ReduceOp::sum;
    case c10d::ReduceOp::AVG:
      return ReduceOp::avg;
    case c10d::ReduceOp::MIN:
      return ReduceOp::min;
    case c10d::ReduceOp::MAX:
      return ReduceOp::max;
    case c10d::ReduceOp::PRODUCT:
      return ReduceOp::prod;
    case c10d::ReduceOp::BAND:
      return ReduceOp::band;
    case c10d::ReduceOp::BOR:
      return ReduceOp::bor;
    case c10d::ReduceOp::BXOR:
      return ReduceOp::bxor;
    default:
      throw UsageError(
          "op: hier has SUM AVG MIN MAX PRODUCT BAND BOR BXOR; for PREMUL_SUM "
          "multiply the tensor first, then SUM");
  }
}

// The tensor itself if the core can work in its memory, else a copy.
inline at::Tensor plain(const at::Tensor& tensor) {
  return tensor.resolve_conj().resolve_neg().contiguous();
}

// A new flat buffer with a part for each rank: views of it and, if the parts are uneven, bounds.
struct Parts {
  at::Tensor flat;
  Tensors views;
  std::vector<size_t> bounds;
};

inline Parts parts_like(const Tensors& tensors, size_t per_element) {
  Parts parts;
  int64_t total = 0;
  for (const auto& tensor : tensors) total += tensor.numel();
  parts.flat = at::empty({total}, tensors.front().options());
  int64_t begin = 0;
  bool even = true;
  for (const auto& tensor : tensors) {
    parts.bounds.push_back(static_cast<size_t>(begin) * per_element);
    parts.views.push_back(parts.flat.narrow(0, begin, tensor.numel()).view(tensor.sizes()));
    begin += tensor.numel();
    even = even && tensor.numel() == tensors.front().numel();
  }
  parts.bounds.push_back(static_cast<size_t>(total) * per_element);
  if (even) parts.bounds.clear();
  return parts;
}

// One collective being made ready: checks arguments, stages tensors, hands it to the group.
class Maker {
 public:
  Maker(int rank, OpType type, const char* title, Tensors inputs, Tensors outputs)
      : rank_(rank),
        operation_(
            std::make_unique<Operation>(type, title, std::move(inputs), std::move(outputs))) {
    require(!operation_->inputs.empty() || operation_->outputs.empty(), "has no input tensors");
    for (const auto& tensor : operation_->inputs) check(tensor, "input");
    for (const auto& tensor : operation_->outputs) check(tensor, "output");
  }

  [[noreturn]] void refuse(const std::string& problem) const {
    throw UsageError(std::string(operation_->title) + " on rank " + std::to_string(rank_) + ": " +
                     problem);
  }

  void require(bool fine, const char* problem) const {
    if (!fine) refuse(problem);
  }

  void check(const at::Tensor& tensor, const char* argument) const {
    const std::string the = std::string("the ") + argument + " tensor ";
    if (!tensor.defined()) refuse(the + "is undefined");
    if (tensor.layout() != at::kStrided) {
      refuse(the + "is sparse; pass tensor.to_dense()");
    }
    if (!tensor.device().is_cpu()) {
      refuse(the + "is on " + tensor.device().str() +
             ", and hier works on CPU tensors so far; pass "
             "tensor.cpu(), or give GPU tensors a backend of their own: \"cpu:hier,cuda:nccl\"");
    }
    if (tensor.scalar_type() != operation_->inputs.front().scalar_type()) {
      refuse(the + "is " + c10::toString(tensor.scalar_type()) + ", the first input is " +
             c10::toString(operation_->inputs.front().scalar_type()) +
             "; all must be of one dtype");
    }
  }

  Elements elements() const { return elements_of(operation_->inputs.front().scalar_type()); }

  // In `buffer`, which is plain.
  void add(Collective collective, const at::Tensor& buffer, const c10d::ReduceOp* op = nullptr,
           int64_t root = 0, std::vector<size_t> bounds = {}) {
    const auto [dtype, per_element, reducible] = elements();
    Call call;
    call.collective = collective;
    call.data = buffer.data_ptr();
    call.count = static_cast<size_t>(buffer.numel()) * per_element;
    call.bounds = std::move(bounds);
    call.dtype = dtype;
    call.root = static_cast<int>(root);
    if (op) {
      const bool linear = *op == c10d::ReduceOp::SUM || *op == c10d::ReduceOp::AVG;
      if (!reducible) refuse(std::string("cannot reduce ") + c10::toString(buffer.scalar_type()));
      require(!buffer.is_complex() || linear, "complex tensors have SUM and AVG only");
      call.op = op_of(*op);
    }
    operation_->buffers.push_back(buffer);
    operation_->batch.add(std::move(call));
  }

  // In the tensor's own memory, or in a copy that is copied back.
  void add_in_place(Collective collective, const at::Tensor& tensor,
                    const c10d::ReduceOp* op = nullptr, int64_t root = 0) {
    const at::Tensor buffer = plain(tensor);
    add(collective, buffer, op, root);
    if (!buffer.is_same(tensor)) copy_back(buffer, tensor);
  }

  void copy_back(const at::Tensor& from, const at::Tensor& to) {
    operation_->copies.emplace_back(from, to);
  }

  template <class Options>
  c10::intrusive_ptr<c10d::Work> go(Group& group, uint64_t sequence, const Options& options) {
    const double timeout = options.timeout < kNoTimeout ? -1 : Seconds(options.timeout).count();
    auto work = c10::make_intrusive<TorchWork>(rank_, std::move(operation_), sequence);
    if (options.asyncOp) {
      work->start(group, timeout);
    } else {
      work->run(group, timeout);
    }
    return work;
  }

 private:
  int rank_;
  std::unique_ptr<Operation> operation_;
};

}  // namespace hier::torch_backend
