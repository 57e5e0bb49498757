#include "segment.h"

#include <arpa/inet.h>

#include <cerrno>
#include <cstring>

#include "checksum.h"

// Where the network header begins, behind up to two VLAN tags; its type in `*type`.
static int32_t network_offset(const uint8_t *frame, int32_t length, uint16_t *type) {
  int32_t at = ETHERNET;
  for (int tags = 0;; tags++) {
    if (at > length) return -1;
    *type = get16(frame + at - 2);
    if (tags == 2 || (*type != TYPE_VLAN && *type != TYPE_SVLAN)) return at;
    at += TAG;
  }
}

int super_frame_read(super_frame *s, const uint8_t *frame, int32_t length,
                     const virtio_net_hdr *vnet) {
  int kind = gso_kind(vnet);
  uint16_t type;
  headers *h = &s->at;
  h->l3 = network_offset(frame, length, &type);
  if (h->l3 < 0) return -EINVAL;
  h->l4 = vnet->csum_start;
  h->v6 = type == TYPE_IPV6;
  h->tcp = kind != layout::VNET_GSO_UDP_L4;
  bool fits = h->tcp ? kind == (h->v6 ? layout::VNET_GSO_TCPV6 : layout::VNET_GSO_TCPV4) : true;
  if (!fits || (!h->v6 && type != TYPE_IPV4)) return -EINVAL;
  if (h->l4 < h->l3 + (h->v6 ? IPV6 : IPV4)) return -EINVAL;
  if (length < h->l4 + (h->tcp ? TCP : UDP)) return -EINVAL;
  // hdr_len is not to be trusted when a frame was forwarded: the headers say it themselves.
  h->payload = h->l4 + (h->tcp ? (frame[h->l4 + TCP_OFFSET] >> 4) * 4 : UDP);
  if (h->tcp && h->payload < h->l4 + TCP) return -EINVAL;
  if (h->payload > MOST_HEADERS || h->payload >= length || vnet->gso_size == 0) return -EINVAL;
  s->frame = frame;
  s->length = length;
  s->size = vnet->gso_size;
  s->segments = (length - h->payload + s->size - 1) / s->size;
  return s->segments <= layout::MOST_SEGMENTS ? 0 : -EINVAL;
}

static void put_network(const super_frame *s, int32_t segment, uint8_t *to, int32_t length) {
  const headers *h = &s->at;
  uint8_t *l3 = to + h->l3;
  if (h->v6) {
    put16(l3 + IPV6_LENGTH, static_cast<uint32_t>(length - h->l3 - IPV6));
    return;
  }
  put16(l3 + IPV4_LENGTH, static_cast<uint32_t>(length - h->l3));
  put16(l3 + IPV4_ID, static_cast<uint32_t>(get16(l3 + IPV4_ID) + segment) & 0xffff);
  put16(l3 + IPV4_CHECKSUM, 0);
  uint16_t sum = static_cast<uint16_t>(~checksum_sum(l3, static_cast<size_t>(h->l4 - h->l3)));
  memcpy(l3 + IPV4_CHECKSUM, &sum, sizeof sum);
}

int32_t super_frame_segment(const super_frame *s, int32_t segment, uint8_t *to) {
  const headers *h = &s->at;
  int32_t from = h->payload + segment * s->size;
  int32_t bytes = s->length - from < s->size ? s->length - from : s->size;
  memcpy(to, s->frame, static_cast<size_t>(h->payload));
  put_network(s, segment, to, h->payload + bytes);

  uint8_t *l4 = to + h->l4;
  int32_t field = h->tcp ? TCP_CHECKSUM : UDP_CHECKSUM;
  if (h->tcp) {
    put32(l4 + TCP_SEQUENCE,
          get32(l4 + TCP_SEQUENCE) + static_cast<uint32_t>(segment) * static_cast<uint32_t>(s->size));
    if (segment > 0) l4[TCP_FLAGS] &= static_cast<uint8_t>(~TCP_CWR);
    if (segment < s->segments - 1) l4[TCP_FLAGS] &= static_cast<uint8_t>(~(TCP_FIN | TCP_PSH));
  } else {
    put16(l4 + UDP_LENGTH, static_cast<uint32_t>(UDP + bytes));
  }
  // The field holds the sum of the pseudo header with the length of the whole: that of this piece takes
  // its place. (The addresses would not do: behind a routing header the last hop's counts.)
  uint16_t sum, whole = htons(static_cast<uint16_t>(s->length - h->l4));
  memcpy(&sum, l4 + field, sizeof sum);
  int32_t header = h->payload - h->l4;
  sum = checksum_add(sum, static_cast<uint16_t>(~whole));
  sum = checksum_add(sum, htons(static_cast<uint16_t>(header + bytes)));
  put16(l4 + field, 0);
  sum = checksum_add(sum, checksum_sum(l4, static_cast<size_t>(header)));
  sum = checksum_add(sum, checksum_copy(to + h->payload, s->frame + from, static_cast<size_t>(bytes)));
  uint16_t value = h->tcp ? static_cast<uint16_t>(~sum) : checksum_field(sum);
  memcpy(l4 + field, &value, sizeof value);
  return h->payload + bytes;
}
