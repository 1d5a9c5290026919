// Several tensors on each rank, with the meaning that ProcessGroupGloo gives them; and its checks,
// in its words.
#pragma once

#include <torch/csrc/distributed/c10d/Utils.hpp>

#include <algorithm>
#include <utility>
#include <vector>

#include "torch/call_builder.h"
#include "torch/split_calls.h"

namespace hier::torch_backend {

inline void require_same_sizes(const CallBuilder& builder, const Tensors& tensors) {
  c10d::assertNonEmpty(builder.refusal(), tensors);
  for (size_t i = 1; i < tensors.size(); ++i) {
    c10d::assertSizesMatch(builder.refusal(), tensors[0].sizes(), tensors, i);
  }
}

inline void combine(const at::Tensor& into, const at::Tensor& other, const c10d::ReduceOp& op) {
  switch (op_of(op)) {
    case ReduceOp::sum:
    case ReduceOp::avg:
      into.add_(other);
      break;
    case ReduceOp::prod:
      into.mul_(other);
      break;
    case ReduceOp::min:
      into.copy_(at::minimum(into, other));
      break;
    case ReduceOp::max:
      into.copy_(at::maximum(into, other));
      break;
    case ReduceOp::band:
      into.bitwise_and_(other);
      break;
    case ReduceOp::bor:
      into.bitwise_or_(other);
      break;
    case ReduceOp::bxor:
      into.bitwise_xor_(other);
      break;
  }
}

// Reduces all tensors of all ranks into one, which every one of them becomes. (A mean is divided by
// the number of ranks.)
inline void add_allreduce(CallBuilder& builder, const Tensors& tensors, const c10d::ReduceOp& op) {
  require_same_sizes(builder, tensors);
  if (tensors.size() == 1) {
    builder.add_in_place(Collective::allreduce, tensors[0], &op);
    return;
  }
  const at::Tensor all = builder.copy_of(tensors[0]);
  builder.before([=] {
    for (size_t i = 1; i < tensors.size(); ++i) combine(all, tensors[i], op);
  });
  builder.add(Collective::allreduce, all, &op);
  for (const auto& tensor : tensors) builder.copy_back(all, tensor);
}

// Which of these share memory with another one.
inline std::vector<bool> sharing(const Tensors& tensors) {
  std::vector<std::pair<ByteRange, size_t>> ranges;
  for (size_t i = 0; i < tensors.size(); ++i) ranges.emplace_back(range_of(tensors[i], true), i);
  std::sort(ranges.begin(), ranges.end(),
            [](const auto& a, const auto& b) { return a.first.begin < b.first.begin; });
  std::vector<bool> shares(tensors.size());
  std::pair<ByteRange, size_t> furthest{{}, 0};
  for (const auto& range : ranges) {
    if (range.first.overlaps(furthest.first)) shares[range.second] = shares[furthest.second] = true;
    if (range.first.end > furthest.first.end) furthest = range;
  }
  return shares;
}

// Every tensor is read before any is written, though they may share memory: as if they were one.
inline void add_allreduce_coalesced(CallBuilder& builder, const Tensors& tensors,
                                    const c10d::ReduceOp& op) {
  c10d::assertNonEmpty(builder.refusal(), tensors);
  const std::vector<bool> shares = sharing(tensors);
  for (size_t i = 0; i < tensors.size(); ++i) {
    builder.add_in_place(Collective::allreduce, tensors[i], &op, 0, shares[i]);
  }
}

// One tensor of the root's becomes all tensors of all ranks.
inline void add_broadcast(CallBuilder& builder, const Tensors& tensors, int64_t root,
                          int64_t root_tensor) {
  c10d::assertRootRank(builder.refusal(), root, builder.size());
  c10d::assertRootTensor(builder.refusal(), root_tensor, static_cast<int64_t>(tensors.size()));
  require_same_sizes(builder, tensors);
  const auto sent = static_cast<size_t>(root_tensor);
  const at::Tensor buffer =
      builder.add_in_place(Collective::broadcast, tensors[sent], nullptr, root);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (i != sent && !tensors[i].is_same(buffer)) builder.copy_back(buffer, tensors[i]);
  }
}

// Each list of outputs becomes all inputs of all ranks, rank by rank.
inline void add_allgather(CallBuilder& builder, const std::vector<Tensors>& outputs,
                          const Tensors& inputs) {
  const auto refuse = builder.refusal();
  c10d::assertNonEmptyInputTensorList(refuse, inputs.size());
  c10d::assertInputOutputTensorListsSameSize(refuse, outputs.size(), inputs.size());
  const size_t each = inputs.size(), wanted = each * static_cast<size_t>(builder.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].size() != wanted) {
      refuse("invalid output tensor list at index " + std::to_string(i) + " (expected length " +
             std::to_string(wanted) + ", got " + std::to_string(outputs[i].size()) + ")");
    }
    for (size_t k = 0; k < wanted; ++k) {
      c10d::assertSizesMatch(refuse, outputs[0][k].sizes(), outputs[i], k);
    }
  }
  Parts joined = parts_like(outputs[0], builder.elements().per_element);
  const size_t first = each * static_cast<size_t>(builder.rank());
  const Tensors mine(joined.views.begin() + static_cast<ptrdiff_t>(first),
                     joined.views.begin() + static_cast<ptrdiff_t>(first + each));
  for (size_t i = 0; i < each; ++i) {
    builder.require(mine[i].numel() == inputs[i].numel(),
                    "invalid tensor size: this rank's output has not the size of its input");
  }
  builder.before([mine, inputs] {
    for (size_t i = 0; i < mine.size(); ++i) mine[i].copy_(inputs[i].reshape(mine[i].sizes()));
  });
  std::vector<size_t> bounds;  // of the ranks
  for (size_t i = 0; i < joined.bounds.size(); i += each) bounds.push_back(joined.bounds[i]);
  builder.add(Collective::allgather, joined.flat, nullptr, 0, std::move(bounds));
  for (const Tensors& list : outputs) {
    for (size_t k = 0; k < wanted; ++k) builder.copy_back(joined.views[k], list[k]);
  }
}

}  // namespace hier::torch_backend
