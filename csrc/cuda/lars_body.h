// The block bodies of LARS: sums of squares of each chunk; from them each tensor's ratio; and the
// step of SGD with it. Every sum has one order, whatever the number of blocks: each chunk and each
// tensor is summed by one block.
#pragma once

#include "cuda/lars_args.h"
#include "cuda/sgd_body.h"

namespace hier::cuda {

HIER_DEVICE Squares plus(const Squares& a, const Squares& b) {
  return {plus(a.parameters, b.parameters), plus(a.gradients, b.gradients)};
}

HIER_DEVICE void add_square(float& sum, float x) { sum = times_plus(x, x, sum); }

// Of this thread's part of a chunk.
template <class Element>
HIER_DEVICE Squares squares_of(const SgdArgs& args, const Chunk& chunk, size_t thread,
                               size_t num_threads) {
  const float* parameters = args.parameters[chunk.range];
  const void* gradients = args.gradients[chunk.range];
  Squares sum{};
  walk(
      chunk, thread, num_threads,
      [&](const Spot& spot) {
        const Eight w = load_eight<Plain<float>>(parameters, spot.from(chunk.range_begin));
        const Eight g = load_eight<Element>(gradients, spot.from(chunk.range_begin));
#pragma unroll
        for (size_t k = 0; k < kGroup; ++k) {
          add_square(sum.parameters, w.lane[k]);
          add_square(sum.gradients, times(g.lane[k], args.rates.scale));
        }
      },
      [&](size_t i) {
        const float g = load_one<Element>(gradients, i - chunk.range_begin);
        add_square(sum.parameters, parameters[i - chunk.range_begin]);
        add_square(sum.gradients, times(g, args.rates.scale));
      });
  return sum;
}

// shared[0] = the sum of one value of each thread, whose number is a power of two.
template <class Ctx>
HIER_DEVICE void sum_threads(const Ctx& ctx, Squares* shared) {
  for (size_t half = ctx.num_threads() / 2; half > 0; half /= 2) {
    ctx.sync();
    ctx.phase([&](size_t thread) {
      if (thread < half) shared[thread] = plus(shared[thread], shared[thread + half]);
    });
  }
}

// Calls done(sum) on one thread, with the sum of value(thread) of all of the block's.
template <class Ctx, class Value, class Done>
HIER_DEVICE void sum_block(const Ctx& ctx, Squares* shared, const Value& value, const Done& done) {
  ctx.phase([&](size_t thread) { shared[thread] = value(thread); });
  sum_threads(ctx, shared);
  ctx.phase([&](size_t thread) {
    if (thread == 0) done(shared[0]);
  });
  ctx.sync();  // the next sum overwrites what this one has read
}

// shared: one for each thread of the block.
template <class Element, class Ctx>
HIER_DEVICE void squares_block(const Ctx& ctx, const LarsArgs& args, Squares* shared) {
  for (size_t at = ctx.block(); at < args.sgd.ranges.num_chunks; at += ctx.num_blocks()) {
    const Chunk chunk = chunk_at(args.sgd.ranges, at);
    if (args.trusts[chunk.range] == 0.0f) continue;
    sum_block(
        ctx, shared,
        [&](size_t thread) {
          return squares_of<Element>(args.sgd, chunk, thread, ctx.num_threads());
        },
        [&](const Squares& sum) { args.partials[at] = sum; });
  }
}

// trust |w| / (|g| + lambda |w|); 1 where a norm is 0.
HIER_DEVICE float ratio_of(const Squares& sum, float trust, float decay) {
  const float weights = root(sum.parameters), slopes = root(sum.gradients);
  if (!(weights > 0.0f && slopes > 0.0f)) return 1.0f;
  return divide(times(trust, weights), plus(slopes, times(decay, weights)));
}

template <class Ctx>
HIER_DEVICE void ratios_block(const Ctx& ctx, const LarsArgs& args, Squares* shared) {
  const auto& ranges = args.sgd.ranges;
  for (size_t range = ctx.block(); range < ranges.num_ranges; range += ctx.num_blocks()) {
    const float trust = args.trusts[range];
    const size_t begin = ranges.first_chunks[range];
    const size_t next =
        range + 1 < ranges.num_ranges ? ranges.first_chunks[range + 1] : ranges.num_chunks;
    const size_t end = trust == 0.0f ? begin : next;
    sum_block(
        ctx, shared,
        [&](size_t thread) {
          Squares sum{};
          for (size_t at = begin + thread; at < end; at += ctx.num_threads()) {
            sum = plus(sum, args.partials[at]);
          }
          return sum;
        },
        [&](const Squares& sum) {
          args.ratios[range] = ratio_of(sum, trust, args.sgd.decays[range]);
        });
  }
}

struct Layerwise {
  HIER_DEVICE static void update(const SgdRates& rates, const SgdPlace& place, float gradient,
                                 float& parameter, float& momentum) {
    if (place.decay != 0.0f) gradient = times_plus(parameter, place.decay, gradient);
    descend(rates, place, times(gradient, place.ratio), parameter, momentum);
  }
};

template <class Element, class Ctx>
HIER_DEVICE void lars_block(const Ctx& ctx, const LarsArgs& args) {
  ctx.phase([&](size_t thread) {
    for (size_t at = ctx.block(); at < args.sgd.ranges.num_chunks; at += ctx.num_blocks()) {
      const Chunk chunk = chunk_at(args.sgd.ranges, at);
      step_chunk<Layerwise, Element>(args.sgd, chunk, args.ratios[chunk.range], thread,
                                     ctx.num_threads());
    }
  });
}

}  // namespace hier::cuda
