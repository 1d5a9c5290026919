// Compiles if csrc/nccl/library.h says what the nccl.h beside it says.
#include <nccl.h>

#include <cstddef>
#include <type_traits>

#include "nccl/library.h"

namespace ours = hier::nccl;

template <class Ours, class Theirs>
constexpr bool equal(Ours ours, Theirs theirs) {
  return static_cast<int>(ours) == static_cast<int>(theirs);
}

static_assert(equal(ours::Result::success, ncclSuccess));
static_assert(equal(ours::Result::unhandled_cuda_error, ncclUnhandledCudaError));
static_assert(equal(ours::Result::system_error, ncclSystemError));
static_assert(equal(ours::Result::internal_error, ncclInternalError));
static_assert(equal(ours::Result::invalid_argument, ncclInvalidArgument));
static_assert(equal(ours::Result::invalid_usage, ncclInvalidUsage));
static_assert(equal(ours::Result::remote_error, ncclRemoteError));
static_assert(equal(ours::Result::in_progress, ncclInProgress));

static_assert(equal(ours::DataType::int8, ncclInt8) && equal(ours::DataType::uint8, ncclUint8));
static_assert(equal(ours::DataType::int32, ncclInt32) && equal(ours::DataType::uint32, ncclUint32));
static_assert(equal(ours::DataType::int64, ncclInt64) && equal(ours::DataType::uint64, ncclUint64));
static_assert(equal(ours::DataType::float16, ncclFloat16));
static_assert(equal(ours::DataType::float32, ncclFloat32));
static_assert(equal(ours::DataType::float64, ncclFloat64));
static_assert(equal(ours::DataType::bfloat16, ncclBfloat16));

static_assert(equal(ours::ReduceOp::sum, ncclSum) && equal(ours::ReduceOp::prod, ncclProd));
static_assert(equal(ours::ReduceOp::max, ncclMax) && equal(ours::ReduceOp::min, ncclMin));
static_assert(equal(ours::ReduceOp::avg, ncclAvg));

static_assert(sizeof(ours::UniqueId) == sizeof(ncclUniqueId));
static_assert(sizeof(ours::Config) <= sizeof(ncclConfig_t));
static_assert(offsetof(ours::Config, magic) == offsetof(ncclConfig_t, magic));
static_assert(offsetof(ours::Config, version) == offsetof(ncclConfig_t, version));
static_assert(offsetof(ours::Config, blocking) == offsetof(ncclConfig_t, blocking));
static_assert(offsetof(ours::Config, cga_cluster_size) == offsetof(ncclConfig_t, cgaClusterSize));
static_assert(offsetof(ours::Config, min_ctas) == offsetof(ncclConfig_t, minCTAs));
static_assert(offsetof(ours::Config, max_ctas) == offsetof(ncclConfig_t, maxCTAs));
static_assert(offsetof(ours::Config, net_name) == offsetof(ncclConfig_t, netName));
static_assert(offsetof(ours::Config, split_share) == offsetof(ncclConfig_t, splitShare));
static_assert(NCCL_CONFIG_UNDEF_INT == INT_MIN);
static_assert(ours::kOldestVersion == NCCL_VERSION(2, 18, 0));

// Arguments in the same order, each of the same size and kind: an enum stands for an enum.
template <class Type>
constexpr int kind() {
  if (std::is_pointer_v<Type>) return 1;
  if (std::is_enum_v<Type>) return 2;
  return std::is_integral_v<Type> ? 3 : 4;
}

template <class Result, class... Arguments, class TheirResult, class... TheirArguments>
constexpr bool alike(Result (*)(Arguments...), TheirResult (*)(TheirArguments...)) {
  if constexpr (sizeof...(Arguments) != sizeof...(TheirArguments)) {
    return false;
  } else {
    return kind<Result>() == kind<TheirResult>() &&
           ((kind<Arguments>() == kind<TheirArguments>() &&
             sizeof(Arguments) == sizeof(TheirArguments)) &&
            ...);
  }
}

constexpr ours::Functions kOurs{};
static_assert(alike(kOurs.get_version, decltype(&ncclGetVersion){}));
static_assert(alike(kOurs.get_unique_id, decltype(&ncclGetUniqueId){}));
static_assert(alike(kOurs.comm_init_rank_config, decltype(&ncclCommInitRankConfig){}));
static_assert(alike(kOurs.comm_get_async_error, decltype(&ncclCommGetAsyncError){}));
static_assert(alike(kOurs.comm_finalize, decltype(&ncclCommFinalize){}));
static_assert(alike(kOurs.comm_destroy, decltype(&ncclCommDestroy){}));
static_assert(alike(kOurs.comm_abort, decltype(&ncclCommAbort){}));
static_assert(alike(kOurs.reduce_scatter, decltype(&ncclReduceScatter){}));
static_assert(alike(kOurs.all_gather, decltype(&ncclAllGather){}));
static_assert(alike(kOurs.all_reduce, decltype(&ncclAllReduce){}));
static_assert(alike(kOurs.get_error_string, decltype(&ncclGetErrorString){}));
static_assert(alike(kOurs.get_last_error, decltype(&ncclGetLastError){}));
