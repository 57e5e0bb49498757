// Segmentation, as a network card does it for a TCP (TSO) or UDP (USO) super-frame: one frame whose
// payload is cut into pieces, each behind a copy of the headers that says what that piece is.
//
// Follows the kernel's tcp_gso_segment, __udp_gso_segment and inet_gso_segment: the IPv4 ID counts up;
// CWR stays with the first segment, FIN and PSH go with the last. Checksums come out complete. Pure.

#pragma once

#include "headers.h"
#include "layout.h"

// A super-frame, and how it is cut.
struct super_frame {
  const uint8_t *frame;
  headers at;
  int32_t length;   // of the frame
  int32_t size;     // of a piece; the last may be shorter
  int32_t segments;
  // Sums of what the headers of all segments have in common: of IPv4's, and of the transport's with its pseudo header.
  uint16_t network_sum, transport_sum;
};

// Reads a frame with gso_type set, of which `vnet` says where the transport header begins. Returns 0,
// or -EINVAL when frame and header do not fit together.
int super_frame_read(super_frame *s, const uint8_t *frame, int32_t length,
                     const virtio_net_hdr *vnet);

// Writes one segment to `to`: s->at.payload bytes of headers and up to s->size of payload. Returns its length.
int32_t super_frame_segment(const super_frame *s, int32_t segment, uint8_t *to);
