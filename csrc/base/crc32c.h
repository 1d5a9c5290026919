// CRC32C (Castagnoli's polynomial, as in iSCSI and ext4), by the fastest instructions at hand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace hier {

// The checksum of the bytes that `crc` is the checksum of, followed by `data`. Of nothing it is 0.
uint32_t crc32c(uint32_t crc, std::span<const std::byte> data);

struct Crc32c {
  const char* name;
  uint32_t (*update)(uint32_t state, const std::byte* at, size_t n);  // the state is ~crc
};
// What this processor can run, fastest first; the last runs anywhere.
std::span<const Crc32c> available_crc32c();

}  // namespace hier
