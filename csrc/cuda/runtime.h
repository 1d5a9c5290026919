// The device runtime of CUDA: see device/runtime.h. One object serves all GPUs of the process.
#pragma once

#include "device/runtime.h"

namespace hier::cuda {

// Made at the first call, which throws CudaError where there is no usable GPU; never destroyed.
DeviceRuntime& runtime();

}  // namespace hier::cuda
