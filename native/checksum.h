// The Internet checksum (RFC 1071), as a network card completes it. Pure.

#pragma once

#include <cstddef>
#include <cstdint>

// Completes a partial checksum: the field at start + offset holds the folded sum of the pseudo
// header, everything from start to the end of the frame is added to it. A result of zero is written
// as 0xffff, which means the same and does not read as "no checksum" in UDP (the kernel's
// CSUM_MANGLED_0). Returns 0, or -EINVAL if the field does not lie within the frame.
int checksum_complete(uint8_t *frame, size_t length, size_t start, size_t offset);
