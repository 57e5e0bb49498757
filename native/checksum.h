// The Internet checksum (RFC 1071), as a network card computes it. Pure.
//
// A sum is folded to 16 bits, not inverted, and in the order of memory: it is stored with memcpy,
// whatever the byte order of the host.

#pragma once

#include <cstddef>
#include <cstdint>

// The sum of `length` bytes, an odd one at the end as if a zero followed.
uint16_t checksum_sum(const uint8_t *data, size_t length);

// The same, of what is copied to `to`.
uint16_t checksum_copy(uint8_t *to, const uint8_t *data, size_t length);

// The sum of two sums.
inline uint16_t checksum_add(uint32_t a, uint32_t b) {
  uint32_t sum = a + b;
  return static_cast<uint16_t>((sum & 0xffff) + (sum >> 16));
}

// The sum of what is left of `sum` without `part` of it; 0xffff, which counts as none, if that is nothing.
inline uint16_t checksum_without(uint16_t sum, uint16_t part) {
  return checksum_add(sum, static_cast<uint16_t>(~part));
}

// The sum of the pseudo header of TCP and UDP (RFC 9293, 3.1; RFC 8200, 8.1): both addresses, which
// lie one behind the other, the protocol, and the length of header and payload.
uint16_t checksum_pseudo(const uint8_t *addresses, bool v6, uint8_t protocol, uint32_t length);

// The sum of the fields by which the TCP or UDP headers of a super-frame's segments differ: of the checksum, and of the
// sequence number and the flags, with what shares their word, or of the length.
uint16_t checksum_own(const uint8_t *l4, bool tcp);

// The sum of the rest of such a header of `length` bytes. Together with the former a segment's costs less than to sum it
// up, which took half as long as its payload.
uint16_t checksum_shared(const uint8_t *l4, bool tcp, size_t length);

// What the field holds for a sum: inverted, and 0xffff for zero, which means the same and does not read
// as "no checksum" in UDP (the kernel's CSUM_MANGLED_0).
inline uint16_t checksum_field(uint16_t sum) {
  uint16_t field = static_cast<uint16_t>(~sum);
  return field == 0 ? 0xffff : field;
}

// Completes a partial checksum: the field at start + offset holds the folded sum of the pseudo
// header, everything from start to the end of the frame is added to it. Returns 0, or -EINVAL if the
// field does not lie within the frame.
int checksum_complete(uint8_t *frame, size_t length, size_t start, size_t offset);
