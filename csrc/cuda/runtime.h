// The device runtime of CUDA: see device/runtime.h. One object serves all GPUs of the process.
#pragma once

#include "device/runtime.h"

namespace hier::cuda {

// Made at the first call, which throws CudaError where there is no usable GPU; never destroyed.
// callbacks: does without stream memory operations, as where the driver lacks them.
DeviceRuntime& runtime(bool callbacks);

// Whether the driver has stream memory operations; that they work here is known once a group has
// tried them, which makes a context.
bool has_memory_operations();

}  // namespace hier::cuda
