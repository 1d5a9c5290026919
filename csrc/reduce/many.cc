// The k-way reduction in canonical tree order: one pass over memory, block by block, with partial
// results in a few blocks on the stack that stay in the first-level cache.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>

#include "base/error.h"
#include "reduce/kernels.h"

namespace hier {
namespace {

constexpr size_t kVectorBytes = 64;  // the longest
constexpr size_t kBlockBytes = 4096;
constexpr size_t kMaxSources = 16384;
// Each level of the tree holds one finished left half, or the leaf that is at work.
constexpr size_t kMaxLevels = std::bit_width(kMaxSources);

// Reduces one block of every source.
class BlockTree {
 public:
  BlockTree(const Folds& folds, std::span<const void* const> sources, size_t element_size)
      : folds_(folds), sources_(sources), element_size_(element_size) {}

  // out = tree of all sources, elements [first, first + count). `out` may be such a source block:
  // it is written by the last fold alone, which reads each element before it writes it.
  void reduce(void* out, size_t first, size_t count) {
    first_ = first;
    count_ = count;
    const void* result = eval(0, sources_.size(), 0, out);
    if (result != out) std::memcpy(out, result, count * element_size_);
  }

 private:
  const void* source(size_t k) const {
    return static_cast<const std::byte*>(sources_[k]) + first_ * element_size_;
  }

  FoldFn direct(size_t ways) const {
    switch (ways) {
      case 2:
        return folds_.two;
      case 3:
        return folds_.three;
      case 4:
        return folds_.four;
      case 8:
        return folds_.eight;
      default:
        return nullptr;
    }
  }

  // Where the tree over sources [low, low + ways) is found: in `target`, or in the only source.
  // `target` is blocks_[level], or else is written after everything is read. Blocks below `level`
  // are taken.
  const void* eval(size_t low, size_t ways, size_t level, void* target) {
    if (ways == 1) return source(low);
    if (const FoldFn fold = direct(ways)) {
      const void* from[8];
      for (size_t k = 0; k < ways; ++k) from[k] = source(low + k);
      fold(target, from, count_);
      return target;
    }
    const size_t half = std::bit_floor(ways - 1);  // the left subtree is the larger one, or equal
    const void* halves[2];
    halves[0] = eval(low, half, level, blocks_[level]);
    halves[1] = eval(low + half, ways - half, level + 1, blocks_[level + 1]);
    folds_.two(target, halves, count_);
    return target;
  }

  const Folds& folds_;
  std::span<const void* const> sources_;
  size_t element_size_, first_ = 0, count_ = 0;
  alignas(64) std::byte blocks_[kMaxLevels][kBlockBytes];
};

void check_arguments(const Kernels& kernels, DType dtype, ReduceOp op, size_t num_outs,
                     size_t num_sources, int divisor) {
  check_supported(dtype, op);
  if (num_outs == 0) throw UsageError("reduce_many needs at least one output");
  if (num_sources == 0 || num_sources > kMaxSources) {
    throw UsageError("reduce_many takes 1 to " + std::to_string(kMaxSources) + " sources, not " +
                     std::to_string(num_sources));
  }
  if (divisor < 1) {
    throw UsageError("the divisor must be at least 1, not " + std::to_string(divisor));
  }
  if (divisor > 1 && kernels.divide[static_cast<size_t>(dtype) - 1] == nullptr) {
    throw UsageError(std::string("an array of dtype ") + name_of(dtype) +
                     " cannot be divided: only floats can");
  }
}

}  // namespace

void reduce_many(const Kernels& kernels, DType dtype, ReduceOp op, std::span<void* const> outs,
                 std::span<const void* const> sources, size_t count, int divisor) {
  check_arguments(kernels, dtype, op, outs.size(), sources.size(), divisor);
  const size_t element_size = size_of(dtype);
  const size_t block = kBlockBytes / element_size;
  BlockTree tree(kernels.at(dtype, op), sources, element_size);
  // The first block is shorter, so that the others are written from a vector boundary on.
  size_t elements = block - reinterpret_cast<uintptr_t>(outs[0]) % kVectorBytes / element_size;
  for (size_t first = 0; first < count; first += elements, elements = block) {
    elements = std::min(elements, count - first);
    const size_t offset = first * element_size;
    std::byte* const out = static_cast<std::byte*>(outs[0]) + offset;
    tree.reduce(out, first, elements);
    if (divisor > 1) kernels.divide[static_cast<size_t>(dtype) - 1](out, elements, divisor);
    for (void* const other : outs.subspan(1)) {
      std::byte* const copy = static_cast<std::byte*>(other) + offset;
      if (copy != out) std::memcpy(copy, out, elements * element_size);
    }
  }
}

void divide(const Kernels& kernels, DType dtype, void* data, size_t count, int divisor) {
  check_arguments(kernels, dtype, ReduceOp::sum, 1, 1, divisor);
  if (divisor > 1) kernels.divide[static_cast<size_t>(dtype) - 1](data, count, divisor);
}

}  // namespace hier
