// All-reduce of sparse tensors: everyone gathers everyone's entries and adds them up.
#pragma once

#include <array>
#include <utility>
#include <vector>

#include <torch/csrc/distributed/c10d/Utils.hpp>

#include "torch/call_builder.h"

namespace hier::torch_backend {

// The shape of a sparse tensor and how many entries it has, as the ranks tell each other.
struct SparseShape {
  static constexpr size_t kMaxDims = 12;
  int64_t entries = 0, sparse_dims = 0, dims = 0;
  std::array<int64_t, kMaxDims> sizes{};

  static SparseShape of(const at::Tensor& tensor) {
    SparseShape shape{tensor._nnz(), tensor.sparse_dim(), tensor.dim()};
    for (int64_t i = 0; i < tensor.dim(); ++i) shape.sizes[i] = tensor.size(i);
    return shape;
  }
  bool fits(const SparseShape& other) const {
    return sparse_dims == other.sparse_dims && dims == other.dims && sizes == other.sizes;
  }
};

// Blocks until every rank has told how many entries it has: only then can they be gathered.
inline std::vector<SparseShape> shapes_of_all(Group& group, int rank, int world_size,
                                              const at::Tensor& tensor, double timeout) {
  constexpr size_t kWords = sizeof(SparseShape) / sizeof(int64_t);
  std::vector<SparseShape> shapes(static_cast<size_t>(world_size));
  shapes[rank] = SparseShape::of(tensor);
  Call call;
  call.collective = Collective::allgather;
  call.data = shapes.data();
  call.count = shapes.size() * kWords;
  call.dtype = DType::i64;
  call.timeout = timeout;
  const WithoutGil nogil;
  group.run(std::move(call));
  return shapes;
}

// A row for each entry of every rank, of which this rank knows its own.
inline at::Tensor rows_of_all(const at::Tensor& own, const std::vector<int64_t>& begin, int rank) {
  auto sizes = own.sizes().vec();
  sizes[0] = begin.back();
  at::Tensor rows = at::empty(sizes, own.options());
  rows.narrow(0, begin[rank], own.size(0)).copy_(own);
  return rows;
}

// Where each rank's entries begin among those of all, and the end.
inline std::vector<int64_t> places_of(const std::vector<SparseShape>& shapes, int rank) {
  std::vector<int64_t> begin{0};
  for (size_t r = 0; r < shapes.size(); ++r) {
    if (!shapes[r].fits(shapes[rank])) {
      throw MismatchError("all_reduce: the sparse tensors of ranks " + std::to_string(rank) +
                          " and " + std::to_string(r) + " differ in shape or sparse dimensions");
    }
    begin.push_back(begin.back() + shapes[r].entries);
  }
  return begin;
}

inline void add_rows(CallBuilder& builder, const at::Tensor& rows,
                     const std::vector<int64_t>& begin) {
  const int64_t row = rows.numel() / std::max<int64_t>(1, rows.size(0));
  std::vector<size_t> bounds;
  for (const int64_t first : begin) {
    bounds.push_back(static_cast<size_t>(first * row) *
                     elements_of(rows.scalar_type()).per_element);
  }
  builder.add(Collective::allgather, rows, nullptr, 0, std::move(bounds));
}

// Overwrites each tensor with the sum or mean over all ranks of all of them.
inline WorkPtr sparse_allreduce(const DeviceBackend& backend, uint64_t sequence,
                                const Tensors& tensors, const c10d::AllreduceOptions& options) {
  const at::Tensor& tensor = tensors.at(0);
  const int rank = backend.getRank(), world_size = backend.getSize();
  const NoAutograd no_autograd;
  if (!tensor.is_cpu()) {
    throw UsageError(
        "all_reduce: the sparse tensor is on " + tensor.device().str() +
        ", and hier reduces sparse tensors on the CPU alone; pass tensor.to_dense() or "
        "tensor.cpu()");
  }
  const bool mean = options.reduceOp == c10d::ReduceOp::AVG;
  if (!mean && options.reduceOp != c10d::ReduceOp::SUM) {
    throw UsageError("all_reduce: sparse tensors have SUM and AVG only");
  }
  if (tensor.layout() != at::kSparse || tensor.dim() > int64_t{SparseShape::kMaxDims}) {
    throw UsageError("all_reduce: a sparse tensor must be COO, of at most 12 dimensions");
  }
  const auto refuse = [](const std::string& problem) {
    throw UsageError("all_reduce: " + problem);
  };
  for (size_t i = 1; i < tensors.size(); ++i) {
    c10d::assertLayoutMatch(refuse, tensor.layout(), tensors, i);
    c10d::assertTypeMatch(refuse, tensor.options(), tensors, i);
    c10d::assertSizesMatch(refuse, tensor.sizes(), tensors, i);
  }
  const auto kept = backend.group();
  Group& group = *kept;
  {
    const WithoutGil nogil;
    group.settle(std::array{kEverything});  // one of them may be about to replace the entries
  }
  at::Tensor own = tensor;
  for (size_t i = 1; i < tensors.size(); ++i) own = own + tensors[i];
  own = own.coalesce();
  const double timeout = seconds_of(options.timeout);
  const auto begin = places_of(shapes_of_all(group, rank, world_size, own, timeout), rank);
  const at::Tensor indices = rows_of_all(own._indices().t(), begin, rank);
  const at::Tensor values = rows_of_all(own._values(), begin, rank);
  CallBuilder builder(backend, OpType::ALLREDUCE, "hier:all_reduce", {values}, {});
  add_rows(builder, indices, begin);
  add_rows(builder, values, begin);
  builder.afterwards(tensors, [=] {
    at::Tensor sum = at::sparse_coo_tensor(indices.t(), values, tensors[0].sizes()).coalesce();
    if (mean) sum.div_(world_size);
    for (const auto& each : tensors) each.copy_(sum);
  });
  return builder.go(sequence, options);
}

}  // namespace hier::torch_backend
