// What a call must be before anything is done with it: every call and message passes here.
#pragma once

#include <cstddef>

#include "group/call.h"

namespace hier {

// Each throws UsageError. `rank` is the caller's, for the words.
void check_address(const char* what, const void* data, size_t count, DType dtype, int rank);
// Host memory may lie anywhere: see Planner::make_run. Kernels of a device cannot read what is not
// aligned.
void check_memory(const Call& call, int rank);
void check_call(const Call& call, int world_size);

}  // namespace hier
