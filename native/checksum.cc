#include "checksum.h"

#include <cerrno>
#include <cstring>

#include "headers.h"

// Ones' complement addition does not mind the order of bytes or the width of words (RFC 1071,
// section 2): 64-bit words in host order, their halves summed apart so that carries have room, folded
// at the end. Four words at a time, twice: with AVX2, where the processor has it, each is one register.
// (A copy to an array of words instead of these types costs two thirds of the speed: GCC 12 goes
// through the stack.)
typedef uint64_t words __attribute__((vector_size(32)));
typedef uint64_t unaligned_words __attribute__((vector_size(32), aligned(1), may_alias));

template <bool copies>
__attribute__((always_inline)) static inline uint16_t sum_up(const uint8_t *data, size_t length, uint8_t *to) {
  words low[2] = {}, high[2] = {};
  for (; length >= 2 * sizeof(words); length -= 2 * sizeof(words), data += 2 * sizeof(words)) {
    const unaligned_words *from = reinterpret_cast<const unaligned_words *>(data);
    words next[2] = {from[0], from[1]};  // read once: what is copied is what is summed up
    if constexpr (copies) {
      reinterpret_cast<unaligned_words *>(to)[0] = next[0];
      reinterpret_cast<unaligned_words *>(to)[1] = next[1];
      to += 2 * sizeof(words);
    }
    low[0] += next[0] & 0xffffffff;
    high[0] += next[0] >> 32;
    low[1] += next[1] & 0xffffffff;
    high[1] += next[1] >> 32;
  }
  if constexpr (copies) {
    memcpy(to, data, length);
    data = to;
  }
  words sums = low[0] + low[1] + high[0] + high[1];
  uint64_t total = sums[0] + sums[1] + sums[2] + sums[3];
  for (; length >= 4; length -= 4, data += 4) {
    uint32_t word;
    memcpy(&word, data, sizeof word);
    total += word;
  }
  if (length > 0) {
    uint8_t padded[4] = {};
    memcpy(padded, data, length);
    uint32_t word;
    memcpy(&word, padded, sizeof word);
    total += word;
  }
  while (total >> 16) total = (total & 0xffff) + (total >> 16);
  return static_cast<uint16_t>(total);
}

#if defined(__x86_64__)
#define WITH_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define WITH_CLONES
#endif

WITH_CLONES uint16_t checksum_sum(const uint8_t *data, size_t length) { return sum_up<false>(data, length, nullptr); }

WITH_CLONES uint16_t checksum_copy(uint8_t *to, const uint8_t *data, size_t length) {
  return sum_up<true>(data, length, to);
}

uint16_t checksum_pseudo(const uint8_t *addresses, bool v6, uint8_t protocol, uint32_t length) {
  uint8_t rest[8] = {};
  put32(rest, length);
  rest[7] = protocol;
  return checksum_add(checksum_sum(addresses, v6 ? 32 : 8), checksum_sum(rest, sizeof rest));
}

int checksum_complete(uint8_t *frame, size_t length, size_t start, size_t offset) {
  if (start > length || length - start < 2 || offset > length - start - 2) return -EINVAL;
  uint16_t field = checksum_field(checksum_sum(frame + start, length - start));
  memcpy(frame + start + offset, &field, sizeof field);
  return 0;
}
