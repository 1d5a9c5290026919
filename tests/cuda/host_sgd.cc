// SGD's block bodies as a C function, for test_cuda_host_sgd.py.
#include "host_sgd.h"

#include <cstdio>

namespace hier::cuda {

// Returns 0, or -1 after printing an error.
extern "C" int host_sgd(float* parameters, float* momenta, const void* gradients, const char* dtype,
                        const size_t* counts, const double* decays, size_t num_ranges, double lr,
                        double momentum, double correction, double scale, bool nesterov,
                        bool absorbed, uint16_t* copy) {
  try {
    std::vector<SgdRange> ranges;
    for (size_t k = 0; k < num_ranges; ++k) ranges.push_back({counts[k], decays[k]});
    const SgdForm form = absorbed ? SgdForm::absorbed : SgdForm::reference;
    host_sgd(SgdArrays{parameters, momenta, gradients, parse_dtype(dtype), copy}, ranges,
             SgdStep{form, lr, momentum, correction, scale, nesterov}, 3, 32);
    return 0;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return -1;
  }
}

}  // namespace hier::cuda
