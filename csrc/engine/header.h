// The run header: 64 bytes that open each channel of a run and say, in clear, what the run is.
//
// It carries the arguments themselves rather than a hash of them, so that whoever sees two headers
// disagree can say in words what each rank called.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "reduce/reduce.h"
#include "schedule/schedule.h"

namespace hier {

struct RunHeader {
  static constexpr uint32_t kMagic = 0x31524148;  // "HAR1"
  static constexpr uint8_t kVersion = 1;

  uint32_t magic = kMagic;
  uint8_t version = kVersion;
  Collective collective{};
  ReduceOp op{};
  DType dtype{};
  uint32_t group_id = 0;
  uint16_t generation = 0;
  uint16_t source = 0;  // rank that wrote this header
  uint32_t run = 0;     // counts the collectives of a group, modulo 2^32
  int32_t root = 0;
  uint64_t count = 0;  // elements of the whole buffer; in an alltoall, of what this channel carries
  uint32_t history = 0;  // hash of the headers of all earlier runs of the group
  uint32_t extra = 0;    // hash of name, shape, split sizes, place and cut of the memory, options
  char algorithm[24] = {};

  uint64_t hash(uint64_t seed) const;         // of what all ranks must agree on
  void set_algorithm(std::string_view name);  // throws UsageError if it is too long
};
static_assert(sizeof(RunHeader) == 64);

// "allreduce(f32[1000], sum, halving_doubling) #41"
std::string describe(const RunHeader& header);

// What is wrong if a rank of a group meets `theirs`, which came from rank `from`, in words; nothing
// if they agree.
std::optional<std::string> disagreement(const RunHeader& mine, const RunHeader& theirs, int from);

}  // namespace hier
