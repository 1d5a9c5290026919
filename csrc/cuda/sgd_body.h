// The block body of SGD: reads parameter, momentum and gradient once, writes the first two and, if
// wanted, the parameter as bf16. The arithmetic is that of allreduce/optim/sgd.py on a CPU,
// rounding by rounding: torch fuses what it calls "add with alpha", and nothing else.
#pragma once

#include "cuda/arithmetic.h"
#include "cuda/sgd_args.h"
#include "cuda/wide.h"

namespace hier::cuda {

// A range's own arrays and numbers; its first element is element 0.
struct SgdPlace {
  float* parameters;
  float* momenta;
  float decay, carry;
  float ratio;  // of LARS alone: multiplies the gradient with its weight decay
};

// Momentum and step of the reference form, given the gradient with its weight decay.
HIER_DEVICE void descend(const SgdRates& rates, const SgdPlace& place, float gradient,
                         float& parameter, float& momentum) {
  float step = gradient;
  if (place.momenta != nullptr) {
    momentum = plus(times(momentum, place.carry), gradient);
    step = rates.nesterov ? times_plus(momentum, rates.momentum, gradient) : momentum;
  }
  parameter = times_plus(step, -rates.lr, parameter);
}

struct Reference {
  HIER_DEVICE static void update(const SgdRates& rates, const SgdPlace& place, float gradient,
                                 float& parameter, float& momentum) {
    if (place.decay != 0.0f) gradient = times_plus(parameter, place.decay, gradient);
    descend(rates, place, gradient, parameter, momentum);
  }
};

struct Absorbed {
  HIER_DEVICE static void update(const SgdRates& rates, const SgdPlace& place, float gradient,
                                 float& parameter, float& momentum) {
    float step = times(gradient, rates.lr);
    if (place.decay != 0.0f) step = times_plus(parameter, place.decay, step);
    if (place.momenta != nullptr) {
      momentum = plus(times(momentum, place.carry), step);
      step = rates.nesterov ? times_plus(momentum, rates.momentum, step) : momentum;
    }
    parameter = minus(parameter, step);
  }
};

// Returns the new parameters.
template <class Form>
HIER_DEVICE Eight update_eight(const SgdRates& rates, const SgdPlace& place, const Spot& spot,
                               const Eight& gradients) {
  using F32 = Plain<float>;
  Eight parameters = load_eight<F32>(place.parameters, spot), momenta{};
  if (place.momenta != nullptr) momenta = load_eight<F32>(place.momenta, spot);
#pragma unroll
  for (size_t k = 0; k < kGroup; ++k) {
    Form::update(rates, place, times(gradients.lane[k], rates.scale), parameters.lane[k],
                 momenta.lane[k]);
  }
  store_eight<F32>(place.parameters, spot, parameters);
  if (place.momenta != nullptr) store_eight<F32>(place.momenta, spot, momenta);
  return parameters;
}

template <class Form>
HIER_DEVICE float update_one(const SgdRates& rates, const SgdPlace& place, size_t i,
                             float gradient) {
  float parameter = place.parameters[i];
  float momentum = place.momenta != nullptr ? place.momenta[i] : 0.0f;
  Form::update(rates, place, times(gradient, rates.scale), parameter, momentum);
  place.parameters[i] = parameter;
  if (place.momenta != nullptr) place.momenta[i] = momentum;
  return parameter;
}

// This thread's part of a chunk, whose place has the given ratio.
template <class Form, class Element>
HIER_DEVICE void step_chunk(const SgdArgs& args, const Chunk& chunk, float ratio, size_t thread,
                            size_t num_threads) {
  const size_t range = chunk.range;
  const SgdPlace place{args.parameters[range], args.momenta[range], args.decays[range],
                       args.carries[range], ratio};
  const void* gradients = args.gradients[range];
  walk(
      chunk, thread, num_threads,
      [&](const Spot& spot) {
        const Spot own = spot.from(chunk.range_begin);
        const Eight parameters =
            update_eight<Form>(args.rates, place, own, load_eight<Element>(gradients, own));
        if (args.copy != nullptr) store_eight<BFloat16>(args.copy, spot, parameters);
      },
      [&](size_t i) {
        const size_t k = i - chunk.range_begin;
        const float parameter =
            update_one<Form>(args.rates, place, k, load_one<Element>(gradients, k));
        if (args.copy != nullptr) store_one<BFloat16>(args.copy, i, parameter);
      });
}

template <class Form, class Element, class Ctx>
HIER_DEVICE void sgd_block(const Ctx& ctx, const SgdArgs& args) {
  ctx.phase([&](size_t thread) {
    for (size_t at = ctx.block(); at < args.ranges.num_chunks; at += ctx.num_blocks()) {
      const Chunk chunk = chunk_at(args.ranges, at);
      step_chunk<Form, Element>(args, chunk, 1.0f, thread, ctx.num_threads());
    }
  });
}

}  // namespace hier::cuda
