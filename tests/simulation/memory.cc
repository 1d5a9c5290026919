// In the place of the C++ library's allocation, and of the C library's of shared memory.
#include "memory.h"

#include <fcntl.h>

#include <cerrno>
#include <cstdlib>
#include <new>

namespace hier::simulation {

int64_t allocations_left = kPlenty;

namespace {

bool refused() { return allocations_left != kPlenty && allocations_left-- == 0; }

}  // namespace

}  // namespace hier::simulation

void* operator new(size_t bytes) {
  if (hier::simulation::refused()) throw std::bad_alloc();
  if (void* memory = std::malloc(bytes ? bytes : 1)) return memory;
  throw std::bad_alloc();
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

// Lives share arenas that are written already, so there is nothing to allocate: it may be refused.
int fallocate(int, int, off_t, off_t) {
  if (!hier::simulation::refused()) return 0;
  errno = ENOMEM;
  return -1;
}
