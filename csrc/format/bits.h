// Codes of 1, 2, 3, 4, 6 and 8 bits between one a byte (how loops work on them) and packed (how a
// canonical row stores them: code k at bit k * bits, least significant bit first).
#pragma once

#include <cstdint>

namespace lowbit {

// count codes into ceil(count * bits / 8) bytes; bits behind the last code are zero.
static inline void pack_bits(int bits, const uint8_t* codes, int count, uint8_t* bytes) {
  if (bits == 8) {
    for (int i = 0; i < count; ++i) bytes[i] = codes[i];
    return;
  }
  int k = 0;
  if (bits == 4) {
    for (; k + 1 < count; k += 2) *bytes++ = static_cast<uint8_t>(codes[k] | codes[k + 1] << 4);
  }
  // Eight codes are `bits` whole bytes for every width.
  for (; k < count; k += 8) {
    uint64_t word = 0;
    const int rest = count - k < 8 ? count - k : 8;
    for (int i = 0; i < rest; ++i) word |= static_cast<uint64_t>(codes[k + i]) << (i * bits);
    const int used = (rest * bits + 7) / 8;
    for (int i = 0; i < used; ++i) *bytes++ = static_cast<uint8_t>(word >> (8 * i));
  }
}

static inline void unpack_bits(int bits, const uint8_t* bytes, int count, uint8_t* codes) {
  if (bits == 8) {
    for (int i = 0; i < count; ++i) codes[i] = bytes[i];
    return;
  }
  int k = 0;
  if (bits == 4) {
    for (; k + 1 < count; k += 2, ++bytes) {
      codes[k] = *bytes & 15;
      codes[k + 1] = *bytes >> 4;
    }
  }
  const uint32_t mask = (1u << bits) - 1;
  for (; k < count; k += 8) {
    uint64_t word = 0;
    const int rest = count - k < 8 ? count - k : 8;
    const int used = (rest * bits + 7) / 8;
    for (int i = 0; i < used; ++i) word |= static_cast<uint64_t>(*bytes++) << (8 * i);
    for (int i = 0; i < rest; ++i) codes[k + i] = static_cast<uint8_t>(word >> (i * bits) & mask);
  }
}

}  // namespace lowbit
