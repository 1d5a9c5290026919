// Buffers in the memory that a node shares.
#include "group/symmetric_memory.h"

namespace hier {

void SymmetricMemory::add(const std::shared_ptr<SharedMapping>& mapping, size_t bytes) {
  const std::lock_guard lock(mutex_);
  // Ranks free theirs at different times: numbers, not places in this list, tell which is meant.
  std::erase_if(allocations_, [](const Allocation& known) { return known.mapping.expired(); });
  allocations_.push_back({mapping, bytes, ++num_made_});
}

size_t SymmetricMemory::size() const {
  const std::lock_guard lock(mutex_);
  return allocations_.size();
}

std::optional<SymmetricMemory::Place> SymmetricMemory::find(const void* data, size_t bytes, int me,
                                                            int local_size) const {
  const auto* begin = static_cast<const std::byte*>(data);
  const std::lock_guard lock(mutex_);
  for (const Allocation& known : allocations_) {
    const auto mapping = known.mapping.lock();
    if (!mapping) continue;
    const std::byte* part = mapping->data() + known.bytes * static_cast<size_t>(me);
    if (begin < part || begin + bytes > part + known.bytes) continue;
    Place place{known.number, static_cast<size_t>(begin - part), {}};
    for (int r = 0; r < local_size; ++r) {
      place.of_ranks.push_back(mapping->data() + known.bytes * static_cast<size_t>(r) +
                               place.offset);
    }
    return place;
  }
  return std::nullopt;
}

}  // namespace hier
