// What GPUs there are, and why there are none: answers on a machine without a GPU or driver, too.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#ifdef __CUDACC__
#include <cuda_runtime_api.h>
#endif

namespace hier::cuda {

struct Device {
  std::string name;
  int major, minor;  // compute capability
  size_t memory_bytes;
};

// "" if there is a usable GPU, else the reason in a sentence. The first call initialises CUDA, so a
// process that forks later cannot use it in the child.
std::string why_not();

std::vector<Device> devices();  // empty where why_not() says so

// 1000 * major + 10 * minor; 0 where no driver is loaded.
int driver_version();
int runtime_version();

// Whether `device` can read and write the memory of `peer`. Throws CudaError.
bool can_access_peer(int device, int peer);

// Multiprocessors of the current device. Throws CudaError where there is none.
size_t num_processors();

#ifdef __CUDACC__
// Throws CudaError.
void check_cuda(cudaError_t result, const char* attempted);
#endif

}  // namespace hier::cuda
