#include "checksum.h"

#include <cerrno>
#include <cstring>

#include "headers.h"

// Ones' complement addition does not mind the order of bytes or the width of words (RFC 1071,
// section 2): 64-bit words in host order, their halves summed apart so that carries have room, folded
// at the end. Four words at a time, twice: with AVX2, where the processor has it, each is one register.
typedef uint64_t words __attribute__((vector_size(32)));

template <bool copies>
__attribute__((always_inline)) static inline uint16_t sum_up(const uint8_t *data, size_t length, uint8_t *to) {
  // Read once: what is copied is what is summed up.
  auto take = [&](auto *next) __attribute__((always_inline)) {
    memcpy(next, data, sizeof *next);
    data += sizeof *next;
    if constexpr (copies) {
      memcpy(to, next, sizeof *next);
      to += sizeof *next;
    }
  };
  words low[2] = {}, high[2] = {};
  auto add = [&](int at) __attribute__((always_inline)) {
    words next;
    take(&next);
    low[at] += next & 0xffffffff;
    high[at] += next >> 32;
  };
  for (; length >= 2 * sizeof(words); length -= 2 * sizeof(words)) {
    add(0);
    add(1);
  }
  if ((length & sizeof(words)) != 0) add(0);
  words sums = low[0] + low[1] + high[0] + high[1];
  uint64_t total = sums[0] + sums[1] + sums[2] + sums[3];
  for (length %= sizeof(words); length >= 8; length -= 8) {
    uint64_t next;
    take(&next);
    total += (next & 0xffffffff) + (next >> 32);
  }
  if ((length & 4) != 0) {
    uint32_t next;
    take(&next);
    total += next;
  }
  if ((length & 2) != 0) {
    uint16_t next;
    take(&next);
    total += next;
  }
  if ((length & 1) != 0) {
    uint8_t next;
    take(&next);
    const uint8_t padded[2] = {next, 0};
    total += word_at(padded);
  }
  total = (total & 0xffffffff) + (total >> 32);
  total = (total & 0xffff) + (total >> 16 & 0xffff) + (total >> 32);
  return checksum_add(total & 0xffff, static_cast<uint32_t>(total >> 16));
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

uint16_t checksum_own(const uint8_t *l4, bool tcp) {
  uint16_t checksum = word_at(l4 + checksum_offset(tcp));
  if (!tcp) return checksum_add(checksum, word_at(l4 + UDP_LENGTH));
  uint16_t sequence = checksum_add(word_at(l4 + TCP_SEQUENCE), word_at(l4 + TCP_SEQUENCE + 2));
  return checksum_add(checksum, checksum_add(sequence, word_at(l4 + TCP_OFFSET)));
}

uint16_t checksum_shared(const uint8_t *l4, bool tcp, size_t length) {
  return checksum_without(checksum_sum(l4, length), checksum_own(l4, tcp));
}

int checksum_complete(uint8_t *frame, size_t length, size_t start, size_t offset) {
  if (start > length || length - start < 2 || offset > length - start - 2) return -EINVAL;
  uint16_t field = checksum_field(checksum_sum(frame + start, length - start));
  memcpy(frame + start + offset, &field, sizeof field);
  return 0;
}
