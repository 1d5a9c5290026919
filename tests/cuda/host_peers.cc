// A training loop of virtual ranks over shared memory, for test_cuda_host_peers.py.
//   host_peers correct | relaxed | without-first | without-last     a loop, with this context
//   host_peers abort | absent                                       a rank that does not come
// Prints "largest error E" of the loop, of the results against f64.
#include "host_peers.h"

#include <cmath>
#include <cstdio>
#include <cstring>

#include "host_buffer.h"
#include "host_sgd.h"

namespace hier::cuda {
namespace {

constexpr size_t kBlocks = 2, kBlockThreads = 16;
constexpr double kLr = 0.1, kMomentum = 0.9;

struct World {
  size_t num_ranks, count;
  std::vector<std::unique_ptr<Signals>> signals;
  std::vector<void*> signal_pointers, gradients, weights;
  std::vector<Buffer> gradient_buffers, weight_buffers;

  World(size_t ranks, size_t elements, size_t element_size, size_t start)
      : num_ranks(ranks), count(elements) {
    for (size_t r = 0; r < ranks; ++r) {
      signals.push_back(std::make_unique<Signals>());
      signal_pointers.push_back(signals.back().get());
      gradient_buffers.emplace_back(elements, element_size, start);
      weight_buffers.emplace_back(elements, element_size, start);
      gradients.push_back(gradient_buffers.back().data());
      weights.push_back(weight_buffers.back().data());
    }
  }

  template <class Ctx>
  HostRank<Ctx> rank(size_t r, double timeout = 100) const {
    return {{signal_pointers, r, timeout}, kBlocks, kBlockThreads};
  }
  size_t num_errors() const {
    size_t errors = 0;
    for (const auto& one : signals) errors += one->error != 0;
    return errors;
  }
};

float gradient_at(size_t step, size_t rank, size_t i) {
  return static_cast<float>((i * 7 + rank * 13 + step * 29) % 64) / 16.0f - 2.0f;
}

std::vector<SgdRange> ranges_of(size_t count) {
  return {{count / 3, 1e-2}, {count / 5, 0.0}, {count - count / 3 - count / 5, 2e-2}};
}

// Three steps on every rank, by the fused kernel or by the two others with SGD between them. After
// each kernel the rank's stream goes on: it reads the weights and overwrites the gradients.
template <class Ctx, class Element>
void train(World& world, DType dtype, bool fused, std::vector<std::vector<float>>& masters) {
  run_ranks(world.num_ranks, [&](size_t r) {
    const Shard shard = shard_of(world.count, world.num_ranks, r);
    const size_t size = shard.end - shard.begin;
    std::vector<float> momenta(size), sums(size);
    float* master = masters[r].data();
    const auto rank = world.rank<Ctx>(r);
    const SgdStep step{SgdForm::reference, kLr, kMomentum,
                       1.0 / static_cast<double>(world.num_ranks), true};
    const auto ranges = ranges_of(world.count);
    for (size_t k = 0; k < 3; ++k) {
      for (size_t i = 0; i < world.count; ++i) {
        store_one<Element>(world.gradients[r], i, gradient_at(k, r, i));
      }
      if (fused) {
        rank.fused(world.gradients, world.weights, dtype, master, momenta.data(), ranges, step);
      } else {
        rank.reduce_scatter(world.gradients, dtype, sums.data(), world.count,
                            static_cast<float>(step.scale));
        SgdStep unscaled = step;
        unscaled.scale = 1;
        const auto tensors =
            tensors_of(master, momenta.data(), sums.data(), DType::f32, cut_to(shard, ranges));
        host_sgd(tensors, DType::f32, unscaled, nullptr, kBlocks, kBlockThreads);
        rank.allgather(master, world.weights, dtype, world.count);
      }
      volatile float read = 0;
      for (size_t i = 0; i < world.count; ++i) read = load_one<Element>(world.weights[r], i);
      static_cast<void>(read);
    }
  });
}

// The largest error of the weights, relative to what rounding to Element allows, on any rank.
template <class Element>
double error_of(const World& world) {
  const double ulp = std::is_same_v<Element, BFloat16>  ? 0x1p-8
                     : std::is_same_v<Element, Float16> ? 0x1p-11
                                                        : 0x1p-21;
  double worst = 0;
  size_t i = 0;
  for (const SgdRange& range : ranges_of(world.count)) {
    for (const size_t end = i + range.count; i < end; ++i) {
      double weight = 1, momentum = 0;
      for (size_t k = 0; k < 3; ++k) {
        double gradient = 0;
        for (size_t r = 0; r < world.num_ranks; ++r) gradient += gradient_at(k, r, i);
        gradient = gradient / static_cast<double>(world.num_ranks) + range.weight_decay * weight;
        momentum = kMomentum * momentum + gradient;
        weight -= kLr * (gradient + kMomentum * momentum);
      }
      for (size_t r = 0; r < world.num_ranks; ++r) {
        const double found = load_one<Element>(world.weights[r], i);
        worst = std::max(worst, std::abs(found - weight) / (ulp * std::max(1.0, std::abs(weight))));
      }
    }
  }
  return worst;
}

template <class Ctx, class Element>
double run_loop(DType dtype, size_t ranks, size_t count, size_t start, bool fused) {
  double worst = 0;
  std::vector<World> worlds;
  for (int rerun = 0; rerun < 2; ++rerun) {
    worlds.emplace_back(ranks, count, sizeof(typename Element::Stored), start);
    std::vector<std::vector<float>> masters(ranks);
    for (size_t r = 0; r < ranks; ++r) {
      const Shard shard = shard_of(count, ranks, r);
      masters[r].assign(shard.end - shard.begin, 1.0f);
    }
    train<Ctx, Element>(worlds.back(), dtype, fused, masters);
    worst = std::max(worst, error_of<Element>(worlds.back()));
    if (worlds.back().num_errors() != 0) worst = INFINITY;
  }
  for (size_t r = 0; r < ranks; ++r) {  // the same bits in the rerun, and on all ranks
    if (!(worlds[0].weight_buffers[r] == worlds[1].weight_buffers[r])) worst = INFINITY;
    if (!(worlds[0].weight_buffers[r] == worlds[0].weight_buffers[0])) worst = INFINITY;
  }
  return worst;
}

template <class Ctx>
double run_loops(std::initializer_list<size_t> many_ranks, std::initializer_list<size_t> counts) {
  double worst = 0;
  for (const size_t ranks : many_ranks) {
    for (const size_t count : counts) {
      for (const bool fused : {true, false}) {
        const size_t start = count % 3;
        worst =
            std::max({worst, run_loop<Ctx, Plain<float>>(DType::f32, ranks, count, start, fused),
                      run_loop<Ctx, BFloat16>(DType::bf16, ranks, count, start, fused),
                      run_loop<Ctx, Float16>(DType::f16, ranks, count, start, fused)});
      }
    }
  }
  return worst;
}

// Rank 2 of 3 does not come. Prints the error words of the others, and who was told to stop.
void run_without_one(bool abort) {
  World world(3, 1000, sizeof(float), 0);
  std::vector<float> shards[2] = {std::vector<float>(1000), std::vector<float>(1000)};
  std::jthread aborter([&] {
    if (!abort) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    HostPeerCtx::store_relaxed(&world.signals[0]->abort, 1);
  });
  run_ranks(2, [&](size_t r) {
    world.rank<HostPeerCtx>(r, abort ? 1000 : 0.2)
        .reduce_scatter(world.gradients, DType::f32, shards[r].data(), world.count, 1);
  });
  aborter.join();
  std::printf("errors %u %u, aborted %u %u %u\n", world.signals[0]->error, world.signals[1]->error,
              world.signals[0]->abort, world.signals[1]->abort, world.signals[2]->abort);
}

}  // namespace
}  // namespace hier::cuda

int main(int argc, char** argv) {
  using namespace hier::cuda;
  const char* how = argc > 1 ? argv[1] : "";
  const auto is = [&](const char* name) { return std::strcmp(how, name) == 0; };
  if (is("abort") || is("absent")) {
    run_without_one(is("abort"));
    return 0;
  }
  double error = NAN;
  if (is("correct")) {
    error = std::max(run_loops<HostPeerCtx>({2, 3, 4, 5, 6, 7, 8}, {7, 100}),
                     run_loops<HostPeerCtx>({2, 4}, {0, 1, 4 * kChunk + 1}));
  }
  if (is("relaxed")) error = run_loops<RelaxedCtx>({4}, {4 * kChunk + 1});
  if (is("without-first")) error = run_loops<SkippingCtx<0>>({4}, {4 * kChunk + 1});
  if (is("without-last")) error = run_loops<SkippingCtx<1>>({4}, {4 * kChunk + 1});
  std::printf("largest error %g\n", error);
  return error < 2 ? 0 : 1;
}
