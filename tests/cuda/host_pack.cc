// The block bodies of pack and unpack as a C function, for test_cuda_host_pack.py.
#include "host_pack.h"

#include <cstdio>

namespace hier::cuda {

// Returns how many launches it takes, or -1 after printing an error.
extern "C" long host_pack(bool unpack, void* const* pointers, const size_t* counts,
                          size_t num_tensors, const char* dtype, void* flat, const char* flat_dtype,
                          float scale) {
  try {
    std::vector<Tensor> tensors;
    for (size_t k = 0; k < num_tensors; ++k) tensors.push_back({pointers[k], counts[k]});
    const DType from = parse_dtype(dtype), to = parse_dtype(flat_dtype);
    host_pack(unpack, tensors, from, flat, to, scale, 3, 32);
    return static_cast<long>(plan_pack(tensors, from, flat, to, scale).size());
  } catch (const UsageError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return -1;
  }
}

}  // namespace hier::cuda
