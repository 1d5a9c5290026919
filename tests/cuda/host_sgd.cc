// SGD's and LARS's block bodies as C functions, for tests/host_optimizers.py.
#include "host_sgd.h"

#include <cstdio>

namespace hier::cuda {

constexpr size_t kBlocks = 3, kBlockThreads = 32;

// As host_optimizers.py lays it out.
struct OptimizerTensor {
  float* parameters;
  float* momenta;
  const void* gradients;
  size_t count;
  double weight_decay;
  double last;  // correction, or trust
};

// Returns 0, or -1 after printing an error.
template <class Run>
int run_checked(const Run& run) {
  try {
    run();
    return 0;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return -1;
  }
}

SgdTensor sgd_tensor(const OptimizerTensor& t) {
  return {t.parameters, t.momenta, t.gradients, t.count, t.weight_decay};
}

extern "C" int host_sgd(const OptimizerTensor* tensors, size_t num_tensors, const char* dtype,
                        const SgdStep* step, uint16_t* copy) {
  return run_checked([&] {
    std::vector<SgdTensor> at;
    for (const OptimizerTensor& tensor : std::span(tensors, num_tensors)) {
      at.push_back(sgd_tensor(tensor));
      at.back().correction = tensor.last;
    }
    host_sgd(at, parse_dtype(dtype), *step, copy, kBlocks, kBlockThreads);
  });
}

// How many ranges the kernels are given, all launches together; -1 for an error.
extern "C" long host_sgd_ranges(const OptimizerTensor* tensors, size_t num_tensors) {
  std::vector<SgdTensor> at;
  for (const OptimizerTensor& tensor : std::span(tensors, num_tensors)) {
    at.push_back(sgd_tensor(tensor));
  }
  long ranges = 0;
  for (const SgdArgs& args : plan_sgd(at, DType::f32, {}, nullptr))
    ranges += args.ranges.num_ranges;
  return ranges;
}

extern "C" size_t host_lars_workspace(const size_t* counts, size_t num_tensors) {
  return lars_workspace_of(std::span(counts, num_tensors));
}

extern "C" int host_lars(const OptimizerTensor* tensors, size_t num_tensors, const char* dtype,
                         const SgdStep* step, float* workspace) {
  return run_checked([&] {
    std::vector<LarsTensor> at;
    for (const OptimizerTensor& tensor : std::span(tensors, num_tensors)) {
      at.push_back({sgd_tensor(tensor), tensor.last});
    }
    host_lars(at, parse_dtype(dtype), *step, workspace, kBlocks, kBlockThreads);
  });
}

}  // namespace hier::cuda
