// Copies between a slot, which the caches hold, and a buffer that they may not hold.
#pragma once

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace hier {

inline void copy_within_caches(std::byte* to, const std::byte* from, size_t bytes) {
  std::memcpy(to, from, bytes);
}

// Writes past the caches: a line that is written whole need not be read first. (Cores of ARM notice
// by themselves that whole lines are written.)
#if defined(__x86_64__)
inline void copy_to_memory(std::byte* to, const std::byte* from, size_t bytes) {
  constexpr size_t kLine = 64;
  const size_t head = std::min(bytes, -reinterpret_cast<uintptr_t>(to) % kLine);
  std::memcpy(to, from, head);
  const size_t lines = (bytes - head) / kLine;
  auto* out = reinterpret_cast<__m128i*>(to + head);
  const auto* in = reinterpret_cast<const __m128i*>(from + head);
  for (size_t i = 0; i < lines * 4; i += 4) {
    const __m128i a = _mm_loadu_si128(in + i), b = _mm_loadu_si128(in + i + 1);
    const __m128i c = _mm_loadu_si128(in + i + 2), d = _mm_loadu_si128(in + i + 3);
    _mm_stream_si128(out + i, a);
    _mm_stream_si128(out + i + 1, b);
    _mm_stream_si128(out + i + 2, c);
    _mm_stream_si128(out + i + 3, d);
  }
  _mm_sfence();
  const size_t done = head + lines * kLine;
  std::memcpy(to + done, from + done, bytes - done);
}
#else
inline void copy_to_memory(std::byte* to, const std::byte* from, size_t bytes) {
  std::memcpy(to, from, bytes);
}
#endif

// Reads four pages at once: a prefetcher stops at the end of a page, so more of them are at work.
inline void copy_from_memory(std::byte* to, const std::byte* from, size_t bytes) {
  constexpr size_t kPage = 4096, kPages = 4, kLine = 64;
  size_t done = 0;
  for (; bytes - done >= kPages * kPage; done += kPages * kPage) {
    for (size_t at = done; at < done + kPage; at += kLine) {
      for (size_t page = 0; page < kPages; ++page) {
        std::memcpy(to + at + page * kPage, from + at + page * kPage, kLine);
      }
    }
  }
  std::memcpy(to + done, from + done, bytes - done);
}

}  // namespace hier
