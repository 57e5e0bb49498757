// Bytes that the kernel copies to or from pages, from their begin on.

#pragma once

#include <cstddef>
#include <cstdint>

// They begin at a multiple of 64, as the kernel's do in their page: `rep movsb`, by which it copies, takes a quarter
// longer where the two differ by anything but a multiple of 32 (bench/RESULTS.md). Not by `alignas`, for what is
// allocated aligned leaves gaps in glibc's heap that nothing else fits into.
template <size_t N>
struct aligned_bytes {
  uint8_t room[N + 63];
  uint8_t *data() { return room + (64 - reinterpret_cast<uintptr_t>(room) % 64) % 64; }
};
