// Memory that all ranks of a node map, a part for each, and what of it a buffer is. From any
// thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/mapping.h"

namespace hier {

class SymmetricMemory {
 public:
  // Every rank of the node adds the same, in one order. Local rank i's part starts at i * bytes.
  void add(const std::shared_ptr<SharedMapping>& mapping, size_t bytes);
  size_t size() const;  // how many are known

  struct Place {
    uint64_t number;                   // of the allocation: the same on all ranks of the node
    size_t offset;                     // in each rank's part
    std::vector<std::byte*> of_ranks;  // there, by local rank
  };
  // Where such a buffer of local rank `me` lies; null if it is private.
  std::optional<Place> find(const void* data, size_t bytes, int me, int local_size) const;

 private:
  struct Allocation {
    std::weak_ptr<SharedMapping> mapping;
    size_t bytes;
    uint64_t number;
  };

  mutable std::mutex mutex_;             // guards what follows
  std::vector<Allocation> allocations_;  // those that are in use, and the last ones freed
  uint64_t num_made_ = 0;
};

}  // namespace hier
