// How device pointers lie to the 16-byte boundaries of wide loads and stores. Plain C++.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/error.h"

namespace hier::cuda {

constexpr size_t kPackBytes = 16;
constexpr size_t kGroup = 8;  // elements: one pack of a 16-bit float, two of f32

inline void check_aligned(const void* pointer, size_t element_size) {
  if (reinterpret_cast<uintptr_t>(pointer) % element_size != 0) {
    throw UsageError("a device pointer is not aligned to its elements of " +
                     std::to_string(element_size) + " bytes");
  }
}

struct Array {
  const void* pointer;  // null: there is none, which is always aligned
  size_t element_size;
};

constexpr uint8_t kNoGroups = 255;

// The first element, below kGroup, at which all arrays have a 16-byte boundary; else kNoGroups.
template <class Arrays = std::initializer_list<Array>>
uint8_t find_head(const Arrays& arrays) {
  for (size_t head = 0; head < kGroup; ++head) {
    bool aligned = true;
    for (const Array& array : arrays) {
      const uintptr_t address = reinterpret_cast<uintptr_t>(array.pointer);
      aligned =
          aligned && (address == 0 || (address + head * array.element_size) % kPackBytes == 0);
    }
    if (aligned) return static_cast<uint8_t>(head);
  }
  return kNoGroups;
}

}  // namespace hier::cuda
