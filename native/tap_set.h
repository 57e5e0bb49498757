// The TAPs of a thread as one device: one descriptor to wait for, and one call for all that can be read or
// is to be written, however many of them there are.

#pragma once

#include <sys/epoll.h>

#include <vector>

#include "flows.h"
#include "tap.h"

constexpr int MAX_SLOT_NUMBER = 65535;

struct tap_set {
  int fd;  // epoll's: readable while any of them is
  std::vector<tap *> member;  // by slot
  // Those that were found readable and have not been read since: ready[next] to ready[end - 1]; and how often
  // it was asked for them.
  epoll_event ready[layout::IN_ROWS];
  int next, end;
  unsigned round;
  bool filled;  // the last call ended for want of room: more waits, most likely
  flow_table *flows;  // or null
};

// Returns 0 or -errno.
int tap_set_open(tap_set *s);
void tap_set_close(tap_set *s);

// A TAP joins as `slot`, which is to be free, and leaves when it is closed at the latest. Returns 0 or -errno.
int tap_set_add(tap_set *s, int slot, tap *t);
void tap_set_remove(tap_set *s, int slot);

// Fills in rows with what waits on any of them, each queue in its turn, until nothing waits, or none is left, or a turn's
// bytes or what makes IN_ROWS datagrams have been read. After that, queues that filled most of a turn come last, so that
// nothing waits behind more than one turn of them, but for no longer than some turns.
// Returns how many, 0 if nothing waits (after a moment, if the thread lets some gather: pace.h), or -errno when
// a TAP is of no use any more: its slot is in IN_TAP of row 0. That is so once its interface is gone, or so
// many reads in a row have failed.
constexpr int LAST_STRAW = 16;
int tap_set_read(tap_set *s, const batch *b);

// From now on no more than so many frames of a TAP are read at once, one to IN_ROWS: of each of its queues an equal
// part, at least one. Nothing happens where there is none.
void tap_set_limit(tap_set *s, int slot, int frames);

// From now on all that is for a TAP that has further queues comes to its first, which is read no more: what waits in the
// further ones is older.
void tap_set_gather(const tap_set *s);

// Writes out rows 0 to count - 1, each to the TAP in OUT_TAP, as tap_write does. Returns how many failed.
int tap_set_write(tap_set *s, const batch *b, int count);

// Of a single frame, for flows.h. Returns 1, 0 if nothing waits, or -errno.
int tap_set_read_one(tap_set *s, held *h, uint8_t *rest);

// False if it cannot be written.
bool tap_set_write_one(const tap_set *s, int slot, uint8_t *frame, int32_t length);
