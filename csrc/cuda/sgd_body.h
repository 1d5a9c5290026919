// The block body of SGD: reads parameter, momentum and gradient once, writes the first two and, if
// wanted, the parameter as bf16. The arithmetic is that of allreduce/optim/sgd.py on a CPU,
// rounding by rounding: torch fuses what it calls "add with alpha", and nothing else.
#pragma once

#include "cuda/arithmetic.h"
#include "cuda/sgd_args.h"
#include "cuda/wide.h"

namespace hier::cuda {

// Momentum and step of the reference form, given the gradient with its weight decay.
HIER_DEVICE void descend(const SgdArgs& args, float gradient, float& parameter, float& momentum) {
  float step = gradient;
  if (args.momenta != nullptr) {
    momentum = plus(times(momentum, args.carry), gradient);
    step = args.nesterov ? times_plus(momentum, args.momentum, gradient) : momentum;
  }
  parameter = times_plus(step, -args.lr, parameter);
}

struct Reference {
  HIER_DEVICE static void update(const SgdArgs& args, float decay, float gradient, float& parameter,
                                 float& momentum) {
    if (decay != 0.0f) gradient = times_plus(parameter, decay, gradient);
    descend(args, gradient, parameter, momentum);
  }
};

struct Absorbed {
  HIER_DEVICE static void update(const SgdArgs& args, float decay, float gradient, float& parameter,
                                 float& momentum) {
    float step = times(gradient, args.lr);
    if (decay != 0.0f) step = times_plus(parameter, decay, step);
    if (args.momenta != nullptr) {
      momentum = plus(times(momentum, args.carry), step);
      step = args.nesterov ? times_plus(momentum, args.momentum, step) : momentum;
    }
    parameter = minus(parameter, step);
  }
};

// Returns the new parameters.
template <class Form>
HIER_DEVICE Eight update_eight(const SgdArgs& args, float decay, size_t i, const Eight& gradients) {
  using F32 = Plain<float>;
  Eight parameters = load_eight<F32>(args.parameters, i), momenta{};
  if (args.momenta != nullptr) momenta = load_eight<F32>(args.momenta, i);
#pragma unroll
  for (size_t k = 0; k < kGroup; ++k) {
    Form::update(args, decay, times(gradients.lane[k], args.scale), parameters.lane[k],
                 momenta.lane[k]);
  }
  store_eight<F32>(args.parameters, i, parameters);
  if (args.momenta != nullptr) store_eight<F32>(args.momenta, i, momenta);
  if (args.copy != nullptr) store_eight<BFloat16>(args.copy, i, parameters);
  return parameters;
}

template <class Form>
HIER_DEVICE float update_one(const SgdArgs& args, float decay, size_t i, float gradient) {
  float parameter = args.parameters[i];
  float momentum = args.momenta != nullptr ? args.momenta[i] : 0.0f;
  Form::update(args, decay, times(gradient, args.scale), parameter, momentum);
  args.parameters[i] = parameter;
  if (args.momenta != nullptr) args.momenta[i] = momentum;
  if (args.copy != nullptr) store_one<BFloat16>(args.copy, i, parameter);
  return parameter;
}

template <class Form, class Element, class Ctx>
HIER_DEVICE void sgd_block(const Ctx& ctx, const SgdArgs& args) {
  ctx.phase([&](size_t thread) {
    for (size_t at = ctx.block(); at < args.ranges.num_chunks; at += ctx.num_blocks()) {
      const Chunk chunk = chunk_at(args.ranges, at);
      const float decay = args.decays[chunk.range];
      walk(
          chunk, thread, ctx.num_threads(),
          [&](size_t i) {
            update_eight<Form>(args, decay, i, load_eight<Element>(args.gradients, i));
          },
          [&](size_t i) {
            update_one<Form>(args, decay, i, load_one<Element>(args.gradients, i));
          });
    }
  });
}

}  // namespace hier::cuda
