// Collectives in which each rank has a part: lists of tensors, or one tensor that is cut.
#pragma once

#include <torch/csrc/distributed/c10d/Utils.hpp>

#include <utility>
#include <vector>

#include "torch/call_builder.h"
#include "torch/staging.h"

namespace hier::torch_backend {

// A new flat buffer with a part for each rank: views of it, and where they begin.
struct Parts {
  at::Tensor flat;
  Tensors views;
  std::vector<size_t> bounds;
};

// A place for an output: the tensor's own, or one to be copied to it.
inline at::Tensor plain_place(const at::Tensor& tensor) {
  return is_plain(tensor) ? tensor : staging(tensor.sizes(), tensor.options());
}

inline Parts parts_like(const Tensors& tensors, size_t per_element) {
  Parts parts;
  int64_t total = 0;
  for (const auto& tensor : tensors) total += tensor.numel();
  parts.flat = staging({total}, tensors.front().options());
  int64_t begin = 0;
  for (const auto& tensor : tensors) {
    parts.bounds.push_back(static_cast<size_t>(begin) * per_element);
    parts.views.push_back(parts.flat.narrow(0, begin, tensor.numel()).view(tensor.sizes()));
    begin += tensor.numel();
  }
  parts.bounds.push_back(static_cast<size_t>(total) * per_element);
  return parts;
}

inline void copy_into(CallBuilder& builder, const Parts& parts, const Tensors& tensors) {
  builder.before([views = parts.views, tensors] {
    for (size_t i = 0; i < tensors.size(); ++i) views[i].copy_(tensors[i]);
  });
}

// `parts` give the shapes of all ranks' parts, `outputs` is where they go, if anywhere.
inline void add_gather(CallBuilder& builder, Collective collective, const at::Tensor& input,
                       const Tensors& parts, const Tensors& outputs, int64_t root = 0) {
  const NoAutograd no_autograd;
  const auto mine = static_cast<size_t>(builder.rank());
  builder.require(parts[mine].numel() == input.numel(),
                  "invalid tensor size: this rank's output has not the size of its input");
  Parts joined = parts_like(parts, builder.elements().per_element);
  builder.before([part = joined.views[mine], input] { part.copy_(input.reshape(part.sizes())); });
  builder.add(collective, joined.flat, nullptr, root, std::move(joined.bounds));
  for (size_t i = 0; i < outputs.size(); ++i) builder.copy_back(joined.views[i], outputs[i]);
}

inline void add_allgather(CallBuilder& builder, const at::Tensor& output, const at::Tensor& input) {
  const NoAutograd no_autograd;
  builder.require(output.numel() == input.numel() * builder.size(),
                  "the output must have world_size times the elements of the input");
  const at::Tensor buffer = plain_place(output);
  const at::Tensor mine = buffer.view(-1).narrow(0, builder.rank() * input.numel(), input.numel());
  if (!is_plain(input) || mine.data_ptr() != input.data_ptr()) {
    // From another place in the output: not over itself.
    const bool apart = !range_of(mine, true).overlaps(range_of(input, false));
    builder.before([=] { mine.copy_((apart ? input : input.clone()).reshape(-1)); });
  }
  builder.add(Collective::allgather, buffer);
  if (!buffer.is_same(output)) builder.copy_back(buffer, output);
}

inline void add_reduce_scatter(CallBuilder& builder, const at::Tensor& output,
                               const Tensors& inputs, const c10d::ReduceOp& op) {
  const NoAutograd no_autograd;
  const auto mine = static_cast<size_t>(builder.rank());
  builder.require(inputs[mine].numel() == output.numel(),
                  "invalid tensor size: the output has not the size of this rank's input");
  Parts parts = parts_like(inputs, builder.elements().per_element);
  copy_into(builder, parts, inputs);
  builder.add(Collective::reduce_scatter, parts.flat, &op, 0, std::move(parts.bounds));
  builder.copy_back(parts.views[mine].view(output.sizes()), output);
}

inline void add_reduce_scatter(CallBuilder& builder, const at::Tensor& output,
                               const at::Tensor& input, const c10d::ReduceOp& op) {
  const NoAutograd no_autograd;
  builder.require(input.numel() == output.numel() * builder.size(),
                  "the input must have world_size times the elements of the output");
  const at::Tensor scratch = builder.copy_of(input).view(-1);
  builder.add(Collective::reduce_scatter, scratch, &op);
  const at::Tensor mine = scratch.narrow(0, builder.rank() * output.numel(), output.numel());
  builder.copy_back(mine.view(output.sizes()), output);
}

// `inputs` are the root's parts; empty elsewhere.
inline void add_scatter(CallBuilder& builder, const at::Tensor& output, const Tensors& inputs,
                        int64_t root) {
  const NoAutograd no_autograd;
  const auto mine = static_cast<size_t>(builder.rank());
  const Tensors shapes = inputs.empty() ? Tensors(builder.size(), output) : inputs;
  for (const auto& part : shapes) {
    builder.require(part.numel() == output.numel(),
                    "invalid tensor size: all parts must have the size of the output");
  }
  Parts parts = parts_like(shapes, builder.elements().per_element);
  copy_into(builder, parts, inputs);
  builder.add(Collective::scatter, parts.flat, nullptr, root);
  builder.copy_back(parts.views[mine].view(output.sizes()), output);
}

inline void add_alltoall(CallBuilder& builder, const Tensors& outputs, const Tensors& inputs) {
  const NoAutograd no_autograd;
  Parts from = parts_like(inputs, builder.elements().per_element);
  Parts to = parts_like(outputs, builder.elements().per_element);
  copy_into(builder, from, inputs);
  builder.add_alltoall(to.flat, std::move(to.bounds), from.flat, std::move(from.bounds));
  for (size_t i = 0; i < outputs.size(); ++i) builder.copy_back(to.views[i], outputs[i]);
}

// Where the parts of `tensor` begin, in the core's elements, if `splits` rows of it are a part.
inline std::vector<size_t> bounds_of(const CallBuilder& builder, const at::Tensor& tensor,
                                     const std::vector<int64_t>& splits) {
  c10d::checkSplitSizes(splits, tensor, builder.size());  // throws torch's own errors
  if (splits.empty()) return {};
  const int64_t rows = tensor.size(0);
  const int64_t row = rows == 0 ? 0 : tensor.numel() / rows;
  std::vector<size_t> bounds{0};
  for (const int64_t split : splits) {
    bounds.push_back(bounds.back() +
                     static_cast<size_t>(split * row) * builder.elements().per_element);
  }
  return bounds;
}

inline void add_alltoall(CallBuilder& builder, const at::Tensor& output, const at::Tensor& input,
                         const std::vector<int64_t>& output_splits,
                         const std::vector<int64_t>& input_splits) {
  const NoAutograd no_autograd;
  const at::Tensor to = plain_place(output);
  builder.add_alltoall(to, bounds_of(builder, output, output_splits), builder.plain_of(input),
                       bounds_of(builder, input, input_splits));
  if (!to.is_same(output)) builder.copy_back(to, output);
}

}  // namespace hier::torch_backend
