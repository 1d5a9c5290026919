// Many tensors as the optimizers' kernels take them: made by _C, taken by _cuda.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace hier {

// tests/host_optimizers.py lays it out, too.
struct OptimizerTensor {
  uintptr_t parameters, momenta, gradients;  // addresses; 0 for no momenta
  size_t count;
  double weight_decay;
  double last;  // eta / eta_before for SGD, the trust coefficient for LARS
};

struct OptimizerTensors {
  std::vector<OptimizerTensor> rows;
  std::string dtype;  // of the gradients, if they were read
};

}  // namespace hier
