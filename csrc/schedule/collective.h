// What a collective is: one row for each. Checks, bindings, pictures, documents, benchmarks, and
// the staging of device memory read this table; none of them says it again.
#pragma once

#include <cstdint>
#include <span>

namespace hier {

// Append only: the value is part of the run header.
enum class Collective : uint8_t {
  allreduce = 1,
  reduce_scatter,
  allgather,
  broadcast,
  reduce,
  gather,
  barrier,  // reductions may overlap: only that all have entered counts
  scatter,
  alltoall,
};

// Into how many chunks a schedule cuts the buffer.
enum class Chunks : uint8_t {
  any,
  per_rank,  // one for each rank
  per_pair,  // chunk r * world_size + i travels from rank r to rank i
};

// Which ranks hold a chunk.
enum class Holders : uint8_t {
  all,
  owner,  // of chunk r: rank r
  root,
  source,  // of a chunk per pair: the rank that it comes from
  target,  // of a chunk per pair: the rank that it goes to
};

struct CollectiveInfo {
  Collective collective;
  const char* name;
  bool reduces;
  bool rooted;
  Chunks chunks;
  Holders before, after;
  const char* promise;  // what the ranks end with, in a sentence
};

std::span<const CollectiveInfo> collectives();
// Of a value outside the enum, which only a corrupt header holds: a row called "unknown
// collective".
const CollectiveInfo& info(Collective collective);

// Whether `rank` is one of the holders of the chunk.
bool holds(Holders holders, int rank, int chunk, int root, int world_size);
// The one rank whose data a finished chunk is; -1 where those of all ranks are combined.
int source_of(const CollectiveInfo& info, int chunk, int root, int world_size);
// How many chunks a schedule of so many ranks needs; 0: any number.
int num_chunks_of(Chunks chunks, int world_size);

inline const char* name_of(Collective collective) { return info(collective).name; }

}  // namespace hier
