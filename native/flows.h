// A flow table, as network cards have one: what TypeScript has decided on a lone frame is done again for the next one
// like it, before TypeScript is awake.
//
// A thread that has slept finds its caches taken, and then its JavaScript takes longer to begin than the kernel does
// for all of a frame's way. So what wakes such a thread is looked up here, by all that the decision was made from, and
// moved at once. TypeScript is handed the frame two milliseconds later, when the answer has passed, with where it was
// moved to: it sees the sender again, counts, and writes it there as it would have, which is not done twice. It does not
// decide on it again: what it would decide by may have changed meanwhile, and the frame has left.
//
// A flow holds while the entries of the FDB by which it was decided, and from which its sender would be learned, say
// what they said, and until TypeScript forgets all flows because it would decide by something else that has changed. It
// is by TypeScript that a flow is offered, and TypeScript that says which entries those are (layout::REPEAT).

#pragma once

#include "tap.h"

struct tap_set;
struct udp;

// All that a decision is made from, one behind the other.
struct flow_key {
  uint8_t bytes[64];
  int length;
};

// Of a frame from a TAP: where it goes, its outer TOS and its hash (src/wire/flow.ts) depend on nothing else. False where
// they may: what is no plain IPv4 or IPv6, fragments, extension headers.
bool flow_key_of_frame(int slot, const uint8_t *frame, int32_t length, flow_key *key);

// Three words of the FDB, which are to say what they said.
struct flow_guard {
  int32_t at;
  int32_t words[3];
};

struct flow {
  flow_key key;  // of length 0: none
  flow_guard by, sender;  // the latter of what comes from a TAP only; what comes from the underlay goes by its sender
  int32_t slot;   // of the TAP, of what comes from the underlay
  struct udp *u;  // or, of what comes from a TAP, where it goes
  int32_t remote, hash, tos;
  uint8_t header[8];  // of VXLAN
};

// What was read and has not been handed to TypeScript. What does not fit lies in `rest`, of the last that was read.
constexpr int32_t HELD_BYTES = 2048;
struct held {
  virtio_net_hdr vnet;
  int32_t length, segment, tos;
  int32_t slot, address[layout::ADDRESS_WORDS];
  int32_t target;  // the TAP or the remote that it was moved to, or NOWHERE
  bool truncated, asks;
  alignas(8) uint8_t bytes[layout::HEADROOM + HELD_BYTES];
};

constexpr int FLOWS = 256;
constexpr int MOST_HELD = 8;

struct flow_table {
  const int32_t *guards;
  int32_t guard_words;
  struct tap_set *taps;  // null before they are opened and after
  int underlays;         // that are open; without one, nothing is looked up
  uint64_t awake, until;  // when the thread last was, and until when it is cold; on uv_hrtime()'s clock
  flow known[FLOWS];
  int frames, datagrams;  // that are held
  held frame[MOST_HELD];
  held datagram[MOST_HELD];
  uint8_t rest[FRAME_ROOM];
  // What of the batch that was filled last has been moved: where it begins as an out row, and to whom.
  const batch *filled;
  int moved;
  int32_t moved_at[MOST_HELD], moved_to[MOST_HELD];
};

void flows_forget(flow_table *f);

// The thread was woken because something can be read: of what it is, whatever has a flow is moved. Returns true if that
// was all, so that TypeScript may be handed it in a moment.
bool flows_move_from_taps(flow_table *f);
bool flows_move_from_underlay(flow_table *f, struct udp *u);

// Fills rows with what is held. Returns how many.
int flows_take_frames(flow_table *f, const batch *b);
int flows_take_datagrams(flow_table *f, const batch *b);

// Whether an out row was moved before to where it is to go, which this column says. There may be no table.
bool flows_have_moved(const flow_table *f, const batch *b, int row, int32_t column);

// Out row 0, the only one, has just been written by TypeScript's order: it is a flow from now on, if it was offered.
void flows_learn_encap(flow_table *f, struct udp *u, const batch *b);
void flows_learn_decap(flow_table *f, const batch *b);
