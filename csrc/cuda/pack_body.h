// The block body of pack and unpack.
#pragma once

#include "cuda/arithmetic.h"
#include "cuda/pack_args.h"
#include "cuda/wide.h"

namespace hier::cuda {

// kUnpack: from flat to the tensors, else from them to flat. From, To: what is read, written.
template <bool kUnpack, class From, class To, class Ctx>
HIER_DEVICE void pack_block(const Ctx& ctx, const PackArgs& args) {
  ctx.phase([&](size_t thread) {
    for (size_t at = ctx.block(); at < args.ranges.num_chunks; at += ctx.num_blocks()) {
      const Chunk chunk = chunk_at(args.ranges, at);
      void* tensor = args.tensors[chunk.range];
      const void* from = kUnpack ? args.flat : tensor;
      void* to = kUnpack ? tensor : args.flat;
      // Chunks count in flat.
      const size_t from_base = kUnpack ? 0 : chunk.range_begin;
      const size_t to_base = kUnpack ? chunk.range_begin : 0;
      walk(
          chunk, thread, ctx.num_threads(),
          [&](const Spot& spot) {
            Eight values = load_eight<From>(from, spot.from(from_base));
#pragma unroll
            for (float& lane : values.lane) lane = times(lane, args.scale);
            store_eight<To>(to, spot.from(to_base), values);
          },
          [&](size_t i) {
            store_one<To>(to, i - to_base, times(load_one<From>(from, i - from_base), args.scale));
          });
    }
  });
}

}  // namespace hier::cuda
