// Coalescing, as a network card's receive offload does it: consecutive segments of a TCP or UDP flow
// become one super-frame, which the host's stack then takes in one piece.
//
// A segment joins a train only if cutting the train up again would bring it back:
//
//   both   same Ethernet header, addresses, ports, TOS or traffic class (with it ECN), TTL or hop
//          limit, flow label, DF; no IPv4 options, no IPv6 extensions, no fragments; IPv4 IDs that
//          count up, or DF, with which they mean nothing (RFC 6864); payload as long as the first
//          one's, a shorter one ends the train; checksums present and right
//   TCP    sequence contiguous; same ACK number, window and options; flags ACK alone, and PSH, which
//          ends the train
//   UDP    not DHCP: who speaks it reads from packet sockets, for which nobody cuts a super-frame up
//
// The checksums are verified before a segment joins: the super-frame's are made anew, or left to its receiver as
// VNET_NEEDS_CSUM, which is to say that they are right, and wrong ones would be laundered. A segment that joins
// nothing is passed on as it came, its checksums unseen.
//
// One train is open for each flow, in a small table, so that streams may interleave. Order within a
// flow is kept: what cannot join its flow's train closes it first, and IP without ports (a fragment,
// say) closes all. Pure: what is closed goes to a callback, which may keep nothing of it.

#pragma once

#include <sys/uio.h>

#include "aligned.h"
#include "headers.h"
#include "layout.h"

constexpr int TRAIN_SEGMENTS = 64;

// Consecutive segments of a flow, or one frame of any kind.
struct frame_train {
  int32_t rows;
  int32_t row[TRAIN_SEGMENTS];
  // The virtio_net_hdr, then the frame: as it came if it is alone, else headers, and payload in one piece or several.
  int32_t parts;
  iovec part[2 + TRAIN_SEGMENTS];

  virtio_net_hdr vnet;
  const uint8_t *first;  // frame
  headers at;
  int32_t payload, total;  // bytes of the first one's payload, and of all of them
  uint32_t flow;           // a hash of it
  uint16_t shared;         // once verified: sum of what the segments' headers share, and of their pseudo header without
                           // a length
  bool open, verified, ended;
  uint8_t header[MAX_HEADERS];
};

constexpr int OPEN_TRAINS = 16;
constexpr int MOST_IP = 65535;  // bytes of a packet

struct coalescer {
  void (*close)(void *owner, const frame_train *train);
  void *owner;
  bool tcp, udp;  // what is coalesced at all
  int next;       // the slot for the next train, which holds the oldest one
  frame_train *latest;  // that was begun or joined last; it may have been closed since
  frame_train train[OPEN_TRAINS];
  frame_train alone;
  // The payload of one of the open trains, if any, is copied to one place while it is summed up: the kernel copies one
  // piece faster than 46 (bench/RESULTS.md). One place, so that it stays in the cache.
  frame_train *gathered;
  aligned_bytes<MOST_IP> payload;
};

// Takes the next frame, which must stay where it is until its train is closed.
void coalesce(coalescer *c, int32_t row, const uint8_t *frame, int32_t length);

// Closes what is open, the oldest first.
void coalesce_end(coalescer *c);
