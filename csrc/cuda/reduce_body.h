// The block body of the reduce kernels: sums (or another operation) of k arrays in canonical tree
// order, in one pass. Each thread owns a position in all arrays: it reads all of them, then writes,
// so an output may be the very same pointer as a source.
#pragma once

#include "cuda/element.h"
#include "cuda/reduce_args.h"
#include "cuda/wide.h"

namespace hier::cuda {

// What a thread handles at a time: a Pack, or one stored element.
template <class Element, class Op>
HIER_DEVICE Pack combine(Pack a, Pack b) {
  using Stored = std::conditional_t<Op::kBitwise, uint32_t, typename Element::Stored>;
  const auto x = __builtin_bit_cast(Lanes<Stored>, a);
  const auto y = __builtin_bit_cast(Lanes<Stored>, b);
  Lanes<Stored> result;
#pragma unroll
  for (size_t i = 0; i < kPackBytes / sizeof(Stored); ++i) {
    if constexpr (Op::kBitwise) {
      result.lane[i] = Op::apply(x.lane[i], y.lane[i]);
    } else {
      result.lane[i] =
          Element::narrow(Op::apply(Element::widen(x.lane[i]), Element::widen(y.lane[i])));
    }
  }
  return __builtin_bit_cast(Pack, result);
}

template <class Element, class Op>
HIER_DEVICE typename Element::Stored combine(typename Element::Stored a,
                                             typename Element::Stored b) {
  return Element::narrow(Op::apply(Element::widen(a), Element::widen(b)));
}

template <class Element>
HIER_DEVICE typename Element::Stored quotient(typename Element::Stored a, int divisor) {
  using Wide = typename Element::Wide;
  return Element::narrow(Element::widen(a) / static_cast<Wide>(divisor));
}

template <class Element>
HIER_DEVICE Pack quotient(Pack a, int divisor) {
  auto x = __builtin_bit_cast(Lanes<typename Element::Stored>, a);
#pragma unroll
  for (auto& lane : x.lane) lane = quotient<Element>(lane, divisor);
  return __builtin_bit_cast(Pack, x);
}

// The units at one position of all sources; `base` counts bytes.
template <class Unit>
struct Sources {
  const ReduceArgs& args;
  size_t base;
  HIER_DEVICE Unit operator[](size_t k) const {
    return *reinterpret_cast<const Unit*>(static_cast<const char*>(args.sources[k]) + base);
  }
};

// The tree over a fixed power of two of units.
template <class Element, class Op, int kWays, class Unit>
HIER_DEVICE Unit tree(const Unit* units) {
  if constexpr (kWays == 1) {
    return units[0];
  } else {
    return combine<Element, Op>(tree<Element, Op, kWays / 2>(units),
                                tree<Element, Op, kWays / 2>(units + kWays / 2));
  }
}

template <class Element, class Op, int kWays, class Unit>
HIER_DEVICE Unit fixed_tree(const Sources<Unit>& sources, size_t first) {
  Unit units[kWays];
#pragma unroll
  for (int k = 0; k < kWays; ++k)
    units[k] = sources[first + static_cast<size_t>(k)];  // all in flight
  return tree<Element, Op, kWays>(units);
}

// The tree over any number of sources, as a binary counter counts them: finished[level] holds a
// subtree over 2^level sources wherever the number of sources so far has that bit. Groups of four
// are read at once. Every branch is the same for all threads.
template <class Element, class Op, class Unit>
HIER_DEVICE Unit any_tree(const Sources<Unit>& sources, size_t ways) {
  constexpr int kLevels = 8;  // kMaxSources = 2^7
  Unit finished[kLevels] = {};
#pragma unroll 1
  for (size_t group = 0; group < ways / 4; ++group) {
    Unit carry = fixed_tree<Element, Op, 4>(sources, 4 * group);
    bool placed = false;
#pragma unroll
    for (int level = 2; level < kLevels; ++level) {
      if (placed) continue;
      if ((group >> (level - 2) & 1) == 0) {
        finished[level] = carry;
        placed = true;
      } else {
        carry = combine<Element, Op>(finished[level], carry);
      }
    }
  }
  if (ways & 2) finished[1] = fixed_tree<Element, Op, 2>(sources, ways & ~size_t{3});
  if (ways & 1) finished[0] = sources[ways - 1];
  Unit total{};
  bool started = false;
#pragma unroll
  for (int level = 0; level < kLevels; ++level) {
    if ((ways >> level & 1) == 0) continue;
    total = started ? combine<Element, Op>(finished[level], total) : finished[level];
    started = true;
  }
  return total;
}

// kWays 0 takes any number of sources.
template <class Element, class Op, int kWays, class Unit>
HIER_DEVICE void reduce_at(const ReduceArgs& args, size_t base) {
  const Sources<Unit> sources{args, base};
  Unit result;
  if constexpr (kWays == 0) {
    result = any_tree<Element, Op, Unit>(sources, args.num_sources);
  } else {
    result = fixed_tree<Element, Op, kWays, Unit>(sources, 0);
  }
  if constexpr (Element::kFloat) {
    if (args.divisor > 1) result = quotient<Element>(result, args.divisor);
  }
  for (size_t k = 0; k < args.num_outs; ++k) {
    *reinterpret_cast<Unit*>(static_cast<char*>(args.outs[k]) + base) = result;
  }
}

template <class Element, class Op, int kWays, class Ctx>
HIER_DEVICE void reduce_block(const Ctx& ctx, const ReduceArgs& args) {
  using Stored = typename Element::Stored;
  const size_t stride = ctx.num_blocks() * ctx.num_threads();
  ctx.phase([&](size_t thread) {
    const size_t me = ctx.block() * ctx.num_threads() + thread;
    for (size_t i = me; i < args.num_packs; i += stride) {
      reduce_at<Element, Op, kWays, Pack>(args, args.head * sizeof(Stored) + i * kPackBytes);
    }
    const size_t in_packs = args.num_packs * (kPackBytes / sizeof(Stored));
    for (size_t i = me; i < args.count - in_packs; i += stride) {
      const size_t element = i < args.head ? i : i + in_packs;
      reduce_at<Element, Op, kWays, Stored>(args, element * sizeof(Stored));
    }
  });
}

}  // namespace hier::cuda
