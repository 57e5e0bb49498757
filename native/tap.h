// A queue of a TAP device, and further ones of the same device, which are only read. What is in which, steering.h says.

#pragma once

#include <net/if.h>

#include "layout.h"

// A cache line: of thousands, each is asked for anew.
struct alignas(64) tap {
  int fd = -1;
  char name[IFNAMSIZ] = {};
  bool coalesce_tcp = true, coalesce_udp = true;  // trains are written as super-frames
  bool fills = false;  // most of a turn was its, and more may wait, when it was read last
  tap *further = nullptr;
  int further_queues = 0;
  uint16_t wanted_queues = 0;  // to be opened once nothing waits
  uint16_t drains = 0;  // reads for which it comes first: what waits may be older than what waits in further queues
  // Of the set that it is in, if any.
  struct tap_set *set = nullptr;
  int slot = 0;
  uint16_t last = 0;   // frames that it was read last
  uint16_t most = layout::IN_ROWS;  // frames that are read at once, from all queues of the device; in the first's
  unsigned round = 0;  // of the set, when that was
  int faults = 0;      // reads that failed since the last frame
};

static_assert(sizeof(tap) == 64);

inline constexpr int MOST_FURTHER_QUEUES = 255;  // MAX_TAP_QUEUES of drivers/net/tun.c, but the first

// 64 KiB of IP packet with its Ethernet and VLAN headers. A read that fills it is taken as cut off,
// because the driver does not tell (tun_chr_read_iter returns at most what was asked for).
inline constexpr int32_t FRAME_ROOM = 65536 + 64;

struct tap_options {
  const char *name;
  bool multi_queue;  // whether others open queues of the device too
  // So that not every flow waits behind the one that has most to send. There are none where the device cannot have
  // them, where its flows would not stay each in its queue, or where it is in another network namespace. Only
  // for the one that opens queues of the device.
  int further_queues;
};

// Opens a queue of a TAP, creating the device unless it exists. From then on only this user may join it, and who has
// CAP_NET_ADMIN. Returns 0, or -errno and what failed in `*syscall`.
int tap_open(tap *t, const tap_options *options, const char **syscall);

// Takes a descriptor that is a queue already; ENODEV if it is of another device or of none, or if its device has one
// where others are to open some. It is closed if this fails.
int tap_adopt(tap *t, int fd, const tap_options *options, const char **syscall);
void tap_close(tap *t);

// Opens the queues that are wanted. To be called when nothing waits, or what is sent then would overtake it.
void tap_open_further(tap *t);

// What waits in them is lost.
void tap_close_further(tap *t);

// What the host may leave to us, as TUN_F_ bits. Returns 0, or -errno: EINVAL when this kernel does not
// know one of them, or not without another.
int tap_use_offloads(const tap *t, unsigned offloads);

// Where frames are read to: the next row, and where in the slab there is room still.
struct read_cursor {
  int row;
  int32_t offset;
  int32_t datagrams;  // that what was read is cut into
};

bool has_room(const read_cursor *to);

// Reads up to `limit` frames, fewer if nothing waits, or a turn's bytes or what makes IN_ROWS datagrams
// have been read.
// Returns 0 or -errno; frames before an error are kept.
int tap_read(const tap *t, const batch *b, read_cursor *to, int limit);

// Reads one frame, what does not fit in there to `rest`. Returns 1, 0 if nothing waits, or -errno.
int tap_read_one(const tap *t, struct held *h, uint8_t *rest);

// Writes out rows first to end - 1, those of one flow in their order, and sets the error of each. Returns
// how many failed. A kernel that refuses a super-frame (EINVAL: UDP, before Linux 6.2) is given no more
// of that kind.
int tap_write(tap *t, const batch *b, int first, int end);

// Writes one frame. Returns 0 or errno.
int tap_write_one(const tap *t, uint8_t *frame, int32_t length);

// How often that has happened, to all TAPs of this process.
int tap_demotions();
