// Maps memfds, once per process and file.
#include "base/mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <map>
#include <mutex>

#include "base/error.h"
#include "base/fork.h"

namespace hier {

namespace {

struct Known {
  std::mutex mutex;
  std::map<std::pair<dev_t, ino_t>, std::weak_ptr<SharedMapping>> mappings;
};

}  // namespace

std::shared_ptr<SharedMapping> SharedMapping::open(int fd, size_t expected_bytes) {
  struct stat info{};
  check_errno(::fstat(fd, &info), "fstat of shared memory");
  const auto size = static_cast<size_t>(info.st_size);
  if (size < expected_bytes) {
    throw UsageError("shared memory has " + std::to_string(size) + " bytes, needs " +
                     std::to_string(expected_bytes) +
                     ": the ranks of this node run different versions or options");
  }
  static PerProcess<Known> of_this_process;
  Known& known = of_this_process.get();
  const std::lock_guard lock(known.mutex);
  std::erase_if(known.mappings, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<SharedMapping>& entry = known.mappings[{info.st_dev, info.st_ino}];
  if (auto mapping = entry.lock()) return mapping;
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) throw SystemError(errno, "mmap of shared memory");
  std::shared_ptr<SharedMapping> mapping(new SharedMapping(static_cast<std::byte*>(data), size));
  entry = mapping;
  return mapping;
}

SharedMapping::~SharedMapping() { ::munmap(data_, size_); }

}  // namespace hier
