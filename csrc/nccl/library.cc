// Searching, loading and checking NCCL's library.
#include "nccl/library.h"

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include "base/error.h"

namespace hier::nccl {
namespace {

constexpr const char* kName = "libnccl.so.2";
constexpr const char* kRemedy =
    "install NCCL 2.18 or newer: pip install \"hier-allreduce[cuda13]\" (or [cuda12], to match the "
    "driver)";

// A symbol becomes a function; the first that is missing is remembered.
class Resolver {
 public:
  explicit Resolver(void* handle) : handle_(handle) {}

  template <class Function>
  void operator()(const char* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(handle_, name));
    if (function == nullptr && missing_.empty()) missing_ = name;
  }
  const std::string& missing() const { return missing_; }

 private:
  void* handle_;
  std::string missing_;
};

std::string resolve(void* handle, Functions& to) {
  Resolver symbol(handle);
  symbol("ncclGetVersion", to.get_version);
  symbol("ncclGetUniqueId", to.get_unique_id);
  symbol("ncclCommInitRankConfig", to.comm_init_rank_config);
  symbol("ncclCommGetAsyncError", to.comm_get_async_error);
  symbol("ncclCommFinalize", to.comm_finalize);
  symbol("ncclCommDestroy", to.comm_destroy);
  symbol("ncclCommAbort", to.comm_abort);
  symbol("ncclReduceScatter", to.reduce_scatter);
  symbol("ncclAllGather", to.all_gather);
  symbol("ncclAllReduce", to.all_reduce);
  symbol("ncclGetErrorString", to.get_error_string);
  symbol("ncclGetLastError", to.get_last_error);
  return symbol.missing();
}

std::string path_of(void* handle) {
  const link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || map == nullptr) return kName;
  return map->l_name;
}

// The version first: a release that is too old lacks functions, and its age is the better reason.
Library check(void* handle, const std::string& source) {
  Library library{path_of(handle), source, 0, {}};
  const std::string missing = resolve(handle, library.call);
  const bool has_version = library.call.get_version != nullptr;
  if (has_version && library.call.get_version(&library.version) != Result::success) {
    throw UsageError(library.path + ": ncclGetVersion fails; " + kRemedy);
  }
  if (has_version && library.version < kOldestVersion) {
    throw UsageError(library.path + " (found by: " + source + ") is NCCL " +
                     version_name(library.version) + ", which is too old; " + kRemedy);
  }
  if (!missing.empty()) {
    throw UsageError(library.path + " (found by: " + source + ") has no function " + missing +
                     "; " + kRemedy);
  }
  return library;
}

void* open(const std::string& name) { return dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL); }

}  // namespace

std::string version_name(int version) {
  // Until 2.8 the minor version had one digit less: 2.7.8 is 2708.
  const int unit = version < 10000 ? 1000 : 10000;
  return std::to_string(version / unit) + "." + std::to_string(version % unit / 100) + "." +
         std::to_string(version % 100);
}

Library load(const std::string& path) {
  void* const handle = open(path);
  if (handle == nullptr) {
    throw UsageError("NCCL cannot be loaded: " + std::string(dlerror()) + "; " + kRemedy);
  }
  return check(handle, path);
}

Library find(const std::string& nccl_lib, const std::vector<std::string>& wheels) {
  // Two copies in one process would work, but take twice the memory of the GPU.
  if (void* handle = dlopen(kName, RTLD_NOW | RTLD_NOLOAD)) return check(handle, "this process");
  if (!nccl_lib.empty()) {
    if (void* handle = open(nccl_lib)) return check(handle, "NCCL_LIB");
    throw UsageError("NCCL_LIB=" + nccl_lib + " cannot be loaded: " + dlerror() +
                     "; correct it, or unset it to use the NCCL that pip installed");
  }
  std::string tried;
  for (const std::string& wheel : wheels) {
    if (access(wheel.c_str(), F_OK) != 0) continue;
    if (void* handle = open(wheel)) return check(handle, "wheel");
    tried += std::string(dlerror()) + "; ";
  }
  if (void* handle = open(kName)) return check(handle, "system");
  throw UsageError("NCCL is not found: " + tried + dlerror() + "; " + kRemedy +
                   ", or point NCCL_LIB to a " + kName);
}

UniqueId unique_id(const Library& library) {
  UniqueId id{};
  const Result result = library.call.get_unique_id(&id);
  if (result == Result::success) return id;
  throw CudaError(std::string("making an NCCL unique id: ") +
                  library.call.get_error_string(result) + " (" +
                  library.call.get_last_error(nullptr) + "); NCCL_DEBUG=WARN shows more");
}

}  // namespace hier::nccl
