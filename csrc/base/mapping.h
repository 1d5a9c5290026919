// Shared memory: a mapping of a memfd. Ranks that are threads of one process share one mapping.
#pragma once

#include <cstddef>
#include <memory>

namespace hier {

class SharedMapping {
 public:
  // Maps the whole file, which stays alive without its descriptor. Mapping a file twice in one
  // process gives the same object, so that sanitizers see threads meet at one address.
  // Throws SystemError, or UsageError if the file is smaller than `expected_bytes`.
  static std::shared_ptr<SharedMapping> open(int fd, size_t expected_bytes);

  SharedMapping(const SharedMapping&) = delete;
  SharedMapping& operator=(const SharedMapping&) = delete;
  ~SharedMapping();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  SharedMapping(std::byte* data, size_t size) : data_(data), size_(size) {}
  std::byte* data_;
  size_t size_;
};

}  // namespace hier
