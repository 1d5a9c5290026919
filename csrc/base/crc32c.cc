// CRC32C: a table for any processor, and for x86 the crc32 instruction on three lanes at once, with
// carry-less multiplication beside it where that works on 32 bytes (VPCLMULQDQ). One crc32 takes 3
// cycles and one can begin each cycle; multiplications begin on other ports meanwhile.
//
// All states are reflected polynomials modulo P: bit 31 is the coefficient of x^0. To append n
// bytes multiplies a state by x^(8n), so the states of parts that lie behind each other add up once
// each is multiplied by what follows it. A carry-less product of reflected words is one x too high.
// Another instruction set (aarch64: crc32cx, pmull) is one more block, and one more row below.
#include "base/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hier {

namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;

constexpr uint32_t times_x(uint32_t a) { return (a >> 1) ^ (a & 1 ? kPolynomial : 0); }

// Slices of 8: tables[k][b] is the state of byte b followed by k zero bytes.
constexpr auto make_tables() {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t state = byte;
    for (int bit = 0; bit < 8; ++bit) state = times_x(state);
    tables[0][byte] = state;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables[k - 1][byte];
      tables[k][byte] = before >> 8 ^ tables[0][before & 255];
    }
  }
  return tables;
}
constexpr auto kTables = make_tables();

uint64_t word_at(const std::byte* at) {
  uint64_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

uint32_t by_table(uint32_t state, const std::byte* at, size_t n) {
  for (; n >= 8; at += 8, n -= 8) {
    const uint64_t word = word_at(at) ^ state;
    state = 0;
    for (int i = 0; i < 8; ++i) state ^= kTables[7 - i][word >> 8 * i & 255];
  }
  for (; n > 0; ++at, --n) state = state >> 8 ^ kTables[0][(state ^ uint32_t(*at)) & 255];
  return state;
}

#if defined(__x86_64__)

constexpr uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (int bit = 31; bit >= 0; --bit, a = times_x(a)) product ^= b >> bit & 1 ? a : 0;
  return product;
}

constexpr uint32_t power_of_x(uint64_t n) {
  uint32_t result = 1u << 31, square = 1u << 30;
  for (; n > 0; n >>= 1, square = multiply(square, square)) {
    if (n & 1) result = multiply(result, square);
  }
  return result;
}

#define HIER_CRC __attribute__((target("sse4.2,pclmul")))
#define HIER_VECTOR_CRC __attribute__((target("sse4.2,pclmul,avx2,vpclmulqdq")))

HIER_CRC uint32_t on_one_lane(uint32_t state, const std::byte* at, size_t n) {
  uint64_t wide = state;
  for (; n >= 8; at += 8, n -= 8) wide = _mm_crc32_u64(wide, word_at(at));
  state = static_cast<uint32_t>(wide);
  for (; n > 0; ++at, --n) state = _mm_crc32_u8(state, static_cast<uint8_t>(*at));
  return state;
}

// The state with kBytes zero bytes behind it. A state in the low half of a word stands for itself
// times x^32, the factor too, the product for x more; crc32 multiplies by x^32: in all x^33 too
// much.
template <size_t kBytes>
HIER_CRC uint32_t followed_by(uint64_t state) {
  constexpr uint32_t factor = power_of_x(8 * kBytes - 33);
  const __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128(static_cast<int64_t>(state)),
                                               _mm_cvtsi64_si128(factor), 0);
  return static_cast<uint32_t>(_mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(product))));
}

template <size_t kLane>
HIER_CRC uint32_t on_three_lanes(uint32_t state, const std::byte* at) {
  uint64_t a = state, b = 0, c = 0;
  for (size_t i = 0; i < kLane; i += 8) {
    a = _mm_crc32_u64(a, word_at(at + i));
    b = _mm_crc32_u64(b, word_at(at + kLane + i));
    c = _mm_crc32_u64(c, word_at(at + 2 * kLane + i));
  }
  return followed_by<2 * kLane>(a) ^ followed_by<kLane>(b) ^ static_cast<uint32_t>(c);
}

template <size_t kLane>
HIER_CRC uint32_t blocks_of_lanes(uint32_t state, const std::byte*& at, size_t& n) {
  for (; n >= 3 * kLane; at += 3 * kLane, n -= 3 * kLane) state = on_three_lanes<kLane>(state, at);
  return state;
}

HIER_CRC uint32_t by_lanes(uint32_t state, const std::byte* at, size_t n) {
  state = blocks_of_lanes<1360>(state, at, n);
  state = blocks_of_lanes<168>(state, at, n);
  return on_one_lane(state, at, n);
}

// What moves 16 bytes kBytes ahead: factors of the earlier and the later 8.
template <size_t kBytes>
HIER_CRC __m128i factors() {
  return _mm_set_epi64x(power_of_x(8 * kBytes - 33), power_of_x(8 * kBytes + 31));
}

template <size_t kBytes>
HIER_VECTOR_CRC __m256i moved_ahead(__m256i x) {
  const __m256i factor = _mm256_broadcastsi128_si256(factors<kBytes>());
  return _mm256_xor_si256(_mm256_clmulepi64_epi128(x, factor, 0x00),
                          _mm256_clmulepi64_epi128(x, factor, 0x11));
}

HIER_VECTOR_CRC __m256i vector_at(const std::byte* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

// Four vectors, each moved 128 bytes ahead again and again, become one state.
HIER_VECTOR_CRC uint32_t state_of(const __m256i (&x)[4]) {
  __m256i sum = x[0];
  for (int i = 1; i < 4; ++i) sum = _mm256_xor_si256(moved_ahead<32>(sum), x[i]);
  const __m128i early = _mm256_castsi256_si128(sum);
  const __m128i last =
      _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(early, factors<16>(), 0x00),
                                  _mm_clmulepi64_si128(early, factors<16>(), 0x11)),
                    _mm256_extracti128_si256(sum, 1));
  const uint64_t low = static_cast<uint64_t>(_mm_cvtsi128_si64(last));
  const uint64_t high = static_cast<uint64_t>(_mm_extract_epi64(last, 1));
  return static_cast<uint32_t>(_mm_crc32_u64(_mm_crc32_u64(0, low), high));
}

// A block: 128 bytes for the multiplier, then 40 for each of three lanes, all of them kTurns times.
constexpr size_t kVectorTurn = 128, kWords = 5;
constexpr size_t block_bytes(size_t turns) { return turns * (kVectorTurn + 3 * 8 * kWords); }

template <size_t kTurns>
HIER_VECTOR_CRC uint32_t on_vectors_and_lanes(uint32_t state, const std::byte* at) {
  constexpr size_t lane = kTurns * 8 * kWords;
  const std::byte* word = at + kTurns * kVectorTurn;
  uint64_t a = 0, b = 0, c = 0;
  __m256i x[4] = {_mm256_set_epi64x(0, 0, 0, state), _mm256_setzero_si256(), _mm256_setzero_si256(),
                  _mm256_setzero_si256()};
  for (int i = 0; i < 4; ++i) x[i] = _mm256_xor_si256(x[i], vector_at(at + 32 * i));
  for (size_t turn = 0; turn < kTurns; ++turn) {
    if (turn > 0) {
      at += kVectorTurn;
      for (int i = 0; i < 4; ++i) {
        x[i] = _mm256_xor_si256(moved_ahead<kVectorTurn>(x[i]), vector_at(at + 32 * i));
      }
    }
    for (size_t i = 0; i < kWords; ++i, word += 8) {
      a = _mm_crc32_u64(a, word_at(word));
      b = _mm_crc32_u64(b, word_at(word + lane));
      c = _mm_crc32_u64(c, word_at(word + 2 * lane));
    }
  }
  return followed_by<3 * lane>(state_of(x)) ^ followed_by<2 * lane>(a) ^ followed_by<lane>(b) ^
         static_cast<uint32_t>(c);
}

template <size_t kTurns>
HIER_VECTOR_CRC uint32_t blocks_of_vectors(uint32_t state, const std::byte*& at, size_t& n) {
  constexpr size_t block = block_bytes(kTurns);
  for (; n >= block; at += block, n -= block) state = on_vectors_and_lanes<kTurns>(state, at);
  return state;
}

HIER_VECTOR_CRC uint32_t by_vectors(uint32_t state, const std::byte* at, size_t n) {
  state = blocks_of_vectors<64>(state, at, n);
  state = blocks_of_vectors<8>(state, at, n);
  return by_lanes(state, at, n);
}

#endif

struct Available {
  std::array<Crc32c, 3> kinds{};
  size_t count = 0;
};

Available find_available() {
  Available found;
#if defined(__x86_64__)
  const bool lanes = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
  const bool vectors = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("vpclmulqdq");
  if (lanes && vectors) found.kinds[found.count++] = {"vpclmulqdq", &by_vectors};
  if (lanes) found.kinds[found.count++] = {"sse4.2", &by_lanes};
#endif
  found.kinds[found.count++] = {"table", &by_table};
  return found;
}

}  // namespace

std::span<const Crc32c> available_crc32c() {
  static const Available available = find_available();
  return {available.kinds.data(), available.count};
}

uint32_t crc32c(uint32_t crc, std::span<const std::byte> data) {
  static const auto update = available_crc32c().front().update;
  return ~update(~crc, data.data(), data.size());
}

}  // namespace hier
