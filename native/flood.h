// Messages that are sent by two threads, in no order: those of a frame that goes to hundreds of remotes.
//
// The kernel takes some 2 µs for each datagram, whichever socket it leaves by, so a frame to 1,000 remotes kept the
// thread that forwards for 2 ms, and whatever it had to carry next. Half of them by a second thread, on another core,
// take half of that. Linux wakes that one on the core of whoever wakes it, where it waits for it, so it is kept off
// there. bench/RESULTS.md has the figures.

#pragma once

#include <sys/socket.h>

#include "layout.h"

// From so many messages on it is worth waking somebody.
constexpr int FLOOD_MESSAGES = 256;

// So many are taken at once: who is done waits for no longer than these take the other one.
constexpr int FLOOD_PIECE = 32;
static_assert(layout::OUT_ROWS % FLOOD_PIECE == 0);

// Messages `begin` to `end` - 1.
struct range {
  int begin, end;
};

struct unsent {
  int pieces;
  range piece[layout::OUT_ROWS / FLOOD_PIECE];
};

struct flood;

// Returns null if no thread can be had.
flood *flood_open();
void flood_close(flood *f);

// Sends by this socket what it can of up to OUT_ROWS messages. What is left, of each piece from the message on that
// failed, is to be sent again by whoever wants to know its error. Returns when nothing is in anybody's hands: if the second
// thread loses its core with a piece in hand, only when it has it back. Returns false, and has sent nothing, where no other
// core may be used, or the second thread was late a moment ago.
bool flood_send(flood *f, int fd, mmsghdr *messages, int count, unsent *left);
