// The table of ranges that a kernel takes as its argument, and who walks which part. Ranges are
// counted one after the other, as in a flat array, wherever they lie. A range (a tensor) is cut
// into chunks of at most kChunk elements; a block takes whole chunks, so that what belongs to a
// range is the same for all of its threads.
#pragma once

#include <algorithm>

#include "cuda/alignment.h"
#include "cuda/context.h"

namespace hier::cuda {

constexpr size_t kMaxRanges = 176;  // with a pointer each, 3.7 KiB of a kernel's 4 KiB of arguments
constexpr size_t kChunk = 4096;  // a multiple of kGroup, so that all chunks have their range's head

template <size_t kMax>
struct RangeTable {
  size_t begin;  // of the first range, in elements
  size_t ends[kMax];
  uint32_t first_chunks[kMax];
  uint8_t heads[kMax];  // elements of a range before its first group; or kNoGroups
  uint32_t num_ranges, num_chunks;

  bool full() const { return num_ranges == kMax; }
  size_t end() const { return num_ranges == 0 ? begin : ends[num_ranges - 1]; }
  size_t size_of_last() const { return end() - (num_ranges < 2 ? begin : ends[num_ranges - 2]); }

  void add(size_t count, uint8_t head) {
    ends[num_ranges] = end();
    first_chunks[num_ranges] = num_chunks;
    heads[num_ranges] = head;
    ++num_ranges;
    extend(count);
  }
  // The last range grows by what lies right behind it.
  void extend(size_t count) {
    ends[num_ranges - 1] += count;
    const size_t chunks = (size_of_last() + kChunk - 1) / kChunk;
    num_chunks = first_chunks[num_ranges - 1] + static_cast<uint32_t>(chunks);
  }
};

using Ranges = RangeTable<kMaxRanges>;

struct Chunk {
  size_t range, begin, end, head;
  size_t range_begin;
};

template <size_t kMax>
HIER_DEVICE Chunk chunk_at(const RangeTable<kMax>& ranges, size_t chunk) {
  size_t low = 0, high = ranges.num_ranges;  // the last range whose first chunk is not behind
  while (high - low > 1) {
    const size_t middle = (low + high) / 2;
    if (ranges.first_chunks[middle] <= chunk) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const size_t range_begin = low == 0 ? ranges.begin : ranges.ends[low - 1];
  const size_t begin = range_begin + (chunk - ranges.first_chunks[low]) * kChunk;
  const size_t rest = ranges.ends[low] - begin;
  const size_t size = rest < kChunk ? rest : kChunk;
  const bool grouped = ranges.heads[low] != kNoGroups && ranges.heads[low] < size;
  const size_t head = grouped ? ranges.heads[low] : size;
  return Chunk{low, begin, begin + size, head, range_begin};
}

// Where eight elements lie: four at `first`, four at `first + gap`. `first` of eight that adjoin
// has a 16-byte boundary in all arrays, and so has every fourth element from there in those of f32.
struct Spot {
  size_t first, gap;
  HIER_DEVICE Spot from(size_t begin) const { return {first - begin, gap}; }
  HIER_DEVICE Spot behind(size_t begin) const { return {first + begin, gap}; }
};

// Calls eight(spot) for groups of eight elements, and one(i) for those elements before and behind
// them, as far as they are this thread's. Neighbouring threads take neighbouring fours, so that
// what a warp reads or writes at once adjoins.
template <class Eights, class Ones>
HIER_DEVICE void walk(const Chunk& chunk, size_t thread, size_t num_threads, const Eights& eight,
                      const Ones& one) {
  const size_t size = chunk.end - chunk.begin;
  const size_t in_groups = (size - chunk.head) / kGroup * kGroup;
  const size_t tile = num_threads * kGroup;
  for (size_t done = 0; done < in_groups; done += tile) {
    const size_t rest = in_groups - done < tile ? in_groups - done : tile;
    const size_t i = thread * (kGroup / 2);
    if (i < rest / 2) eight(Spot{chunk.begin + chunk.head + done + i, rest / 2});
  }
  for (size_t i = thread; i < size - in_groups; i += num_threads) {
    one(chunk.begin + (i < chunk.head ? i : i + in_groups));
  }
}

}  // namespace hier::cuda
