// What a call must be before anything is done with it: every call and message passes here.
#include "group/check.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace hier {

void check_address(const char* what, const void* data, size_t count, DType dtype, int rank) {
  if (data != nullptr || count == 0) return;
  throw UsageError(std::string(what) + " on rank " + std::to_string(rank) + ": an array of " +
                   name_of(dtype) + "[" + std::to_string(count) +
                   "] has no memory (its address is 0), as a FakeTensor has none; pass an array "
                   "that has data");
}

// Host memory may lie anywhere: see prepare(). Kernels of a device cannot read what is not aligned.
void check_memory(const Call& call, int rank) {
  const char* what = name_of(call.collective);
  check_address(what, call.data, call.count, call.dtype, rank);
  check_address(what, call.input, call.input_count, call.dtype, rank);
  if (!call.device || !info(call.collective).reduces) return;
  if (is_aligned(call.data, size_of(call.dtype))) return;
  throw UsageError(std::string(what) + " on rank " + std::to_string(rank) +
                   ": an array in GPU memory does not begin at a multiple of the size of " +
                   name_of(call.dtype) + "; pass a copy");
}

namespace {

// The output may replace the input, of which the execution keeps a copy then.
void check_overlap(const Call& call) {
  const size_t element = size_of(call.dtype);
  const ByteRange input = ByteRange::of(call.input, call.input_count * element, false);
  const ByteRange output = ByteRange::of(call.data, call.count * element, true);
  if (!input.overlaps(output) || input.begin == output.begin) return;
  throw UsageError(std::string(name_of(call.collective)) +
                   ": the input and the output overlap in part; pass one array as both, or arrays "
                   "that share no memory");
}

}  // namespace

void check_call(const Call& call, int world_size) {
  const int p = world_size;
  const CollectiveInfo& collective = info(call.collective);
  const std::string what = collective.name;
  if (call.root < 0 || call.root >= p) {
    throw UsageError(what + ": root " + std::to_string(call.root) + " is outside this group of " +
                     std::to_string(p) + " ranks");
  }
  if (collective.reduces) check_supported(call.dtype, call.op);
  const auto check_parts = [&](const std::vector<size_t>& bounds, size_t count) {
    if (bounds.empty() && count % p != 0) {
      throw UsageError(what + ": " + std::to_string(count) + " elements do not split evenly over " +
                       std::to_string(p) + " ranks; pass the split sizes");
    }
    const bool fits =
        bounds.empty() || (bounds.size() == static_cast<size_t>(p) + 1 && bounds.front() == 0 &&
                           bounds.back() == count && std::is_sorted(bounds.begin(), bounds.end()));
    if (!fits) throw UsageError(what + ": the split sizes do not add up to the buffer");
  };
  if (collective.chunks != Chunks::any) check_parts(call.bounds, call.count);
  if (collective.chunks == Chunks::per_pair) {
    check_parts(call.input_bounds, call.input_count);
    check_overlap(call);
  }
}

}  // namespace hier
