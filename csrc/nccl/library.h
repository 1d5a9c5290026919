// NCCL's library, found and loaded while running: nothing is linked against it, and no header of
// NCCL or CUDA is needed, so that the core is built and tested where neither exists.
#pragma once

#include <array>
#include <climits>
#include <cstddef>
#include <string>
#include <vector>

namespace hier::nccl {

// What we use of nccl.h as it stands since 2.18; later releases add and do not change. A test
// compares all of it with the header in NCCL's wheel.
constexpr int kOldestVersion = 21800;  // 10000 * major + 100 * minor + patch

enum class Result : int {
  success = 0,
  unhandled_cuda_error = 1,
  system_error = 2,
  internal_error = 3,
  invalid_argument = 4,
  invalid_usage = 5,
  remote_error = 6,
  in_progress = 7,
};

// clang-format off
enum class DataType : int {
  int8 = 0, uint8 = 1, int32 = 2, uint32 = 3, int64 = 4, uint64 = 5,
  float16 = 6, float32 = 7, float64 = 8, bfloat16 = 9,
};
enum class ReduceOp : int { sum = 0, prod = 1, max = 2, min = 3, avg = 4 };
// clang-format on

struct UniqueId {
  std::array<char, 128> bytes;
};

// ncclConfig_t of 2.18. A newer library copies as much as `size` says and has defaults for the
// rest; INT_MIN leaves a choice to NCCL.
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = kOldestVersion;
  int blocking = INT_MIN;
  int cga_cluster_size = INT_MIN;
  int min_ctas = INT_MIN;
  int max_ctas = INT_MIN;
  const char* net_name = nullptr;
  int split_share = INT_MIN;
};

struct Comm;  // NCCL's own

// Streams are cudaStream_t.
struct Functions {
  Result (*get_version)(int*);
  Result (*get_unique_id)(UniqueId*);
  Result (*comm_init_rank_config)(Comm**, int size, UniqueId, int rank, Config*);
  Result (*comm_get_async_error)(Comm*, Result*);
  Result (*comm_finalize)(Comm*);
  Result (*comm_destroy)(Comm*);
  Result (*comm_abort)(Comm*);
  Result (*reduce_scatter)(const void*, void*, size_t, DataType, ReduceOp, Comm*, void* stream);
  Result (*all_gather)(const void*, void*, size_t, DataType, Comm*, void* stream);
  Result (*all_reduce)(const void*, void*, size_t, DataType, ReduceOp, Comm*, void* stream);
  const char* (*get_error_string)(Result);
  const char* (*get_last_error)(Comm*);
};

// A loaded library. It is never unloaded, so copies stay valid.
struct Library {
  std::string path;    // as the loader found it
  std::string source;  // who pointed to it: "this process", "NCCL_LIB", "wheel", "system"
  int version;         // 22809 for 2.28.9
  Functions call;
};

// Loads one file. Throws UsageError if that fails, or if NCCL is too old or incomplete.
Library load(const std::string& path);

// Loads the first of: the library that this process has loaded already, which is torch's copy
// where torch uses GPUs; `nccl_lib`, unless empty; the first of `wheels` that exists; the system's.
// Throws UsageError where none is found, if `nccl_lib` does not load, or if what is found is too
// old or incomplete: it is not passed over, since the next best would surprise as well.
Library find(const std::string& nccl_lib, const std::vector<std::string>& wheels);

// "2.28.9"
std::string version_name(int version);

// What a communicator's ranks agree on, made by one of them. Throws CudaError.
UniqueId unique_id(const Library& library);

}  // namespace hier::nccl
