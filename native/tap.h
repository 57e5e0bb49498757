// One queue of a TAP device.

#pragma once

#include <net/if.h>

#include "layout.h"

struct tap {
  int fd;
  char name[IFNAMSIZ];
};

// Opens a queue of the TAP `name`, creating the device unless it exists. `offloads` are TUN_F_ bits.
// Returns 0, or -errno and what failed in `*syscall`.
int tap_open(tap *t, const char *name, unsigned offloads, bool multi_queue, const char **syscall);
void tap_close(tap *t);

// Fills in rows until nothing waits or there is no room for another frame of full size. Returns how
// many; -errno only if there were none.
int tap_read(const tap *t, const batch *b);

// Writes out rows first to end - 1, sets the error of each. Returns how many failed.
int tap_write(const tap *t, const batch *b, int first, int end);
