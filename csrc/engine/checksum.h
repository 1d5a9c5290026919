// What protects a unit (a header, a step's elements, a message) on a channel that may damage it: a
// trailer of 8 bytes, so that elements behind it stay aligned.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/crc32c.h"
#include "transport/channel.h"

namespace hier {

struct Trailer {
  uint32_t crc = 0;
  uint32_t inverse = ~0u;  // a damaged trailer is no reason to doubt what it follows, but is told

  static Trailer of(uint32_t crc) { return {crc, ~crc}; }
  bool operator==(const Trailer&) const = default;
  Bytes bytes() const { return std::as_bytes(std::span(this, 1)); }
  std::span<std::byte> room() { return std::as_writable_bytes(std::span(this, 1)); }
};
static_assert(sizeof(Trailer) == 8);

// A unit did not arrive as it was sent. The engine adds who and where.
struct Damaged {};

// The checksum of a unit that passes in parts: each byte is taken in once, while it is in a cache.
class Checksum {
 public:
  void add(Bytes next) { crc_ = crc32c(crc_, next), covered_ += next.size(); }
  // Of a unit that lies in memory: up to `end`, what has not been taken in.
  void cover(const std::byte* unit, size_t end) {
    if (end > covered_) add({unit + covered_, end - covered_});
  }
  Trailer trailer() const { return Trailer::of(crc_); }
  void check(const Trailer& received) const {
    if (received != trailer()) throw Damaged{};
  }

 private:
  uint32_t crc_ = 0;
  size_t covered_ = 0;
};

// A header and its trailer, as they lie on a channel; where nothing is checked, the header alone.
template <class Header>
struct Opening {
  Header header;
  Trailer trailer;

  static size_t bytes(bool checked) { return sizeof(Header) + (checked ? sizeof(Trailer) : 0); }
  Bytes to_send(bool checked) {
    if (checked) trailer = checksum().trailer();
    return std::as_bytes(std::span(this, 1)).first(bytes(checked));
  }
  std::span<std::byte> room(bool checked) {
    return std::as_writable_bytes(std::span(this, 1)).first(bytes(checked));
  }
  void check() const { checksum().check(trailer); }

 private:
  Checksum checksum() const {
    Checksum sum;
    sum.add(std::as_bytes(std::span(&header, 1)));
    return sum;
  }
};

}  // namespace hier
