// Device queries through the CUDA runtime, which is linked statically and loads the driver itself.
#include "cuda/device.h"

#include "base/error.h"

namespace hier::cuda {
namespace {

constexpr int kOldestMajor = 8;  // the kernels are compiled for sm_80 and newer

std::string version_name(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string explain(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
      if (driver_version() == 0) {
        return "no NVIDIA driver is loaded on this machine";
      }
      return "the NVIDIA driver supports CUDA " + version_name(driver_version()) +
             ", but this build needs " + version_name(runtime_version()) +
             ": update the driver, or rebuild with an older CUDA toolkit";
    case cudaErrorNoDevice:
      return "the NVIDIA driver finds no GPU (CUDA_VISIBLE_DEVICES may hide it)";
    default:
      return std::string("CUDA cannot start: ") + cudaGetErrorString(error);
  }
}

}  // namespace

void check_cuda(cudaError_t result, const char* attempted) {
  if (result == cudaSuccess) return;
  throw CudaError(std::string(attempted) + ": " + cudaGetErrorString(result) + " (" +
                  cudaGetErrorName(result) + ")");
}

std::string why_not() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();  // forget it, or the next launch would report it
    return explain(error);
  }
  if (count == 0) return explain(cudaErrorNoDevice);
  for (int index = 0; index < count; ++index) {
    int major = 0;
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index),
               "asking for a GPU's compute capability");
    if (major < kOldestMajor) {
      return "GPU " + std::to_string(index) + " has compute capability " + std::to_string(major) +
             ".x; the kernels need 8.0 or newer (CUDA_VISIBLE_DEVICES can choose another)";
    }
  }
  return "";
}

std::vector<Device> devices() {
  std::vector<Device> found;
  int count = 0;
  if (!why_not().empty() || cudaGetDeviceCount(&count) != cudaSuccess) return found;
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties{};
    check_cuda(cudaGetDeviceProperties(&properties, index), "asking for a GPU's properties");
    found.push_back(
        {properties.name, properties.major, properties.minor, properties.totalGlobalMem});
  }
  return found;
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

bool can_access_peer(int device, int peer) {
  int can = 0;
  check_cuda(cudaDeviceCanAccessPeer(&can, device, peer),
             "asking whether a GPU reaches another one's memory");
  return can != 0;
}

size_t num_processors() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), "asking for the current GPU");
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
             "asking for a GPU's multiprocessors");
  return static_cast<size_t>(count);
}

}  // namespace hier::cuda
