// What users ask a group for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "device/host_staging.h"
#include "group/order.h"
#include "reduce/reduce.h"
#include "schedule/collective.h"

namespace hier {

struct Call {
  Collective collective = Collective::allreduce;
  void* data = nullptr;             // the whole buffer, reduced or filled in place
  size_t count = 0;                 // its elements
  std::vector<size_t> bounds = {};  // of the ranks' parts, where a collective has parts: world_size
                                    // + 1 offsets; none: parts are even, on all ranks
  const void* input = nullptr;      // of an alltoall, whose `data` is its output alone
  size_t input_count = 0;
  std::vector<size_t> input_bounds = {};
  DType dtype = DType::f32;
  ReduceOp op = ReduceOp::sum;
  int root = 0;
  std::string algorithm = "auto";
  double timeout = -1;  // seconds; negative: the group's
  uint32_t name_hash = 0;
  std::optional<DevicePlace> device = {};  // if data and input are device memory
  // Where several calls are one of the user's, or its memory is more than theirs: made by who
  // publishes it. Null: the group takes care of data and input.
  std::shared_ptr<MemoryUse> use = {};

  uint32_t shape = 0;  // shape_hash of the array, where it is known

  size_t bytes() const { return count * size_of(dtype); }
};

// The memory of a call, for those that come after it.
inline std::vector<ByteRange> ranges_of(const Call& call) {
  if (call.collective == Collective::barrier) return {kEverything};
  const size_t element = size_of(call.dtype);
  std::vector<ByteRange> ranges{ByteRange::of(call.data, call.count * element, true)};
  if (call.input) ranges.push_back(ByteRange::of(call.input, call.input_count * element, false));
  return ranges;
}

// So that ranks notice arrays of one size and other shapes. Never 0.
inline uint32_t shape_hash(std::span<const int64_t> sizes) {
  uint64_t hash = sizes.size() + 1;
  for (const int64_t size : sizes) {
    hash = (hash ^ static_cast<uint64_t>(size)) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 32;
  }
  return static_cast<uint32_t>(hash) | 1;
}

// A message to or from one rank.
struct Message {
  bool send = false;
  int peer = 0;  // to receive: or kAnySource
  int tag = 0;   // 0 or more; to receive: or kAnyTag
  void* data = nullptr;
  size_t count = 0;
  DType dtype = DType::f32;
  double timeout = -1;  // seconds; negative: the group's
};

}  // namespace hier
