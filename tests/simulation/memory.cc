// In the place of the standard library's allocation.
#include "memory.h"

#include <cstdlib>
#include <new>

namespace hier::simulation {

int64_t allocations_left = kPlenty;

}  // namespace hier::simulation

void* operator new(size_t bytes) {
  using namespace hier::simulation;
  if (allocations_left != kPlenty && allocations_left-- == 0) throw std::bad_alloc();
  if (void* memory = std::malloc(bytes ? bytes : 1)) return memory;
  throw std::bad_alloc();
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
