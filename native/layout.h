// The memory that TypeScript and this addon share, by the names and numbers of src/batch.ts (which
// explains them) and src/remotes.ts. addon.cc exports the list; src/device/native.ts refuses to
// work with an addon whose list differs from its own.
//
// Another thread may write to shared memory at any time, so whatever is checked is read once, with
// load(), and only the copy is used.

#pragma once

#include <cstddef>
#include <cstdint>

#define VTEP_LAYOUT(X)                              \
  X(IN_ROWS, 256)                                   \
  X(OUT_ROWS, 1024)                                 \
  X(HEADROOM, 10)                                   \
  X(SLAB_BYTES, 640 * 1024)                         \
  X(TURN_BYTES, 256 * 1024)                         \
  X(MOST_SEGMENTS, 8192)                            \
  X(VNET_WORDS, 4)                                  \
  X(ADDRESS_WORDS, 4)                               \
  X(TRUNCATED, 1)                                   \
  X(ASKS, 2)                                        \
  X(ANSWERED, 4)                                    \
  X(REPEATED, 8)                                    \
  X(VNET_NEEDS_CSUM, 1)                             \
  X(VNET_GSO_NONE, 0)                               \
  X(VNET_GSO_TCPV4, 1)                              \
  X(VNET_GSO_TCPV6, 4)                              \
  X(VNET_GSO_UDP_L4, 5)                             \
  X(VNET_GSO_ECN, 0x80)                             \
  X(IN_OFFSET, 0)                                   \
  X(IN_LENGTH, IN_OFFSET + IN_ROWS)                 \
  X(IN_SEGMENT, IN_LENGTH + IN_ROWS)                \
  X(IN_FLAGS, IN_SEGMENT + IN_ROWS)                 \
  X(IN_TOS, IN_FLAGS + IN_ROWS)                     \
  X(IN_TAP, IN_TOS + IN_ROWS)                       \
  X(IN_VNET, IN_TAP + IN_ROWS)                      \
  X(IN_ADDRESS, IN_VNET + IN_ROWS * VNET_WORDS)     \
  X(IN_TARGET, IN_ADDRESS + IN_ROWS * ADDRESS_WORDS) \
  X(OUT_OFFSET, IN_TARGET + IN_ROWS)                 \
  X(OUT_LENGTH, OUT_OFFSET + OUT_ROWS)              \
  X(OUT_ROW, OUT_LENGTH + OUT_ROWS)                 \
  X(OUT_REMOTE, OUT_ROW + OUT_ROWS)                 \
  X(OUT_HASH, OUT_REMOTE + OUT_ROWS)                \
  X(OUT_TOS, OUT_HASH + OUT_ROWS)                   \
  X(OUT_TAP, OUT_TOS + OUT_ROWS)                    \
  X(OUT_ERROR, OUT_TAP + OUT_ROWS)                  \
  X(REPEAT, OUT_ERROR + OUT_ROWS)                   \
  X(GUARD_WORDS, 4)                                 \
  X(COLUMN_WORDS, REPEAT + 2 * GUARD_WORDS)         \
  X(VNET_CSUM_START, 6)                             \
  X(VNET_CSUM_OFFSET, 8)                            \
  X(REMOTE_ROWS, 65536)                             \
  X(REMOTE_WORDS, 8)                                \
  X(REMOTE_FAMILY, 0)                               \
  X(REMOTE_PORT, 1)                                 \
  X(REMOTE_ADDRESS, 2)                              \
  X(REMOTE_PATH_MTU, 6)                             \
  X(REMOTE_LEARNED_AT, 7)                           \
  X(REMOTE_REFUSED, REMOTE_ROWS * REMOTE_WORDS)     \
  X(NARROW_IPV4, 1280 + 2 * 4 + 50)                 \
  X(NARROW_IPV6, 1280 + 2 * 4 + 70)

namespace layout {
#define X(name, value) constexpr int32_t name = value;
VTEP_LAYOUT(X)
#undef X
}  // namespace layout

// <linux/virtio_net.h> is not C++: it calls a field `class`.
struct virtio_net_hdr {
  uint8_t flags;
  uint8_t gso_type;
  uint16_t hdr_len;
  uint16_t gso_size;
  uint16_t csum_start;
  uint16_t csum_offset;
};

static_assert(sizeof(virtio_net_hdr) == 10, "what TUNSETVNETHDRSZ is told");
static_assert(sizeof(virtio_net_hdr) <= layout::VNET_WORDS * sizeof(int32_t), "a row holds one");
static_assert(offsetof(virtio_net_hdr, csum_start) == layout::VNET_CSUM_START, "in bytes");
static_assert(offsetof(virtio_net_hdr, csum_offset) == layout::VNET_CSUM_OFFSET, "in bytes");
static_assert(layout::IN_VNET % 2 == 0, "rows of virtio_net_hdr are aligned");
static_assert(layout::ADDRESS_WORDS * sizeof(int32_t) == 16, "an IPv6 address");
static_assert(layout::REMOTE_ADDRESS + layout::ADDRESS_WORDS == layout::REMOTE_PATH_MTU &&
                  layout::REMOTE_LEARNED_AT + 1 == layout::REMOTE_WORDS,
              "a row");
static_assert((layout::HEADROOM + 14) % 8 == 0, "the inner IP header is 8-byte aligned");

struct batch {
  int32_t *columns;
  uint8_t *slab;
  struct coalescer *trains;  // for frames on their way to a TAP
};

inline int32_t load(const int32_t *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }

inline bool in_slab(int32_t offset, int32_t length) {
  return offset >= 0 && length >= 0 && length <= layout::SLAB_BYTES &&
         offset <= layout::SLAB_BYTES - length;
}

// The kind of super-frame, without what may be marked besides.
inline int gso_kind(const virtio_net_hdr *header) { return header->gso_type & ~layout::VNET_GSO_ECN; }

inline virtio_net_hdr *vnet_of(const batch *b, int row) {
  return reinterpret_cast<virtio_net_hdr *>(b->columns + layout::IN_VNET +
                                            row * layout::VNET_WORDS);
}
