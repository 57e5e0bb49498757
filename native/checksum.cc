#include "checksum.h"

#include <cerrno>
#include <cstring>

// Ones' complement addition does not mind the order of bytes or the width of words (RFC 1071,
// section 2): 32-bit words in host order, carries collected in the upper half, folded at the end.
// Four independent sums let the compiler vectorise.
static uint16_t ones_sum(const uint8_t *data, size_t length) {
  uint64_t sum[4] = {0, 0, 0, 0};
  for (; length >= 16; length -= 16, data += 16) {
    uint32_t words[4];
    memcpy(words, data, sizeof words);
    for (int i = 0; i < 4; i++) sum[i] += words[i];
  }
  uint64_t total = sum[0] + sum[1] + sum[2] + sum[3];
  for (; length >= 2; length -= 2, data += 2) {
    uint16_t word;
    memcpy(&word, data, sizeof word);
    total += word;
  }
  if (length > 0) {
    uint8_t padded[2] = {data[0], 0};
    uint16_t word;
    memcpy(&word, padded, sizeof word);
    total += word;
  }
  while (total >> 16) total = (total & 0xffff) + (total >> 16);
  return static_cast<uint16_t>(total);
}

int checksum_complete(uint8_t *frame, size_t length, size_t start, size_t offset) {
  if (start > length || length - start < 2 || offset > length - start - 2) return -EINVAL;
  uint16_t sum = static_cast<uint16_t>(~ones_sum(frame + start, length - start));
  if (sum == 0) sum = 0xffff;
  memcpy(frame + start + offset, &sum, sizeof sum);
  return 0;
}
