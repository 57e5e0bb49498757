#include "segment.h"

#include <arpa/inet.h>

#include <cerrno>
#include <cstring>
#include <initializer_list>

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

static void sum_up_headers(super_frame *s) {
  const headers *h = &s->at;
  const uint8_t *l3 = s->frame + h->l3, *l4 = s->frame + h->l4;
  s->network_sum = 0;
  if (!h->v6) {
    s->network_sum = checksum_sum(l3, static_cast<size_t>(h->l4 - h->l3));
    for (int32_t field : {IPV4_LENGTH, IPV4_ID, IPV4_CHECKSUM}) {
      s->network_sum = checksum_without(s->network_sum, word_at(l3 + field));
    }
  }
  // The checksum's field holds the sum of the pseudo header, with the length of the whole. (The addresses would not
  // do: behind a routing header the last hop's counts.)
  uint16_t pseudo = word_at(l4 + checksum_offset(h->tcp));
  pseudo = checksum_without(pseudo, htons(static_cast<uint16_t>(s->length - h->l4)));
  s->transport_sum = checksum_add(pseudo, checksum_shared(l4, h->tcp, static_cast<size_t>(h->payload - h->l4)));
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
  if (s->segments > layout::MOST_SEGMENTS) return -EINVAL;
  sum_up_headers(s);
  return 0;
}

static void put_network(const super_frame *s, int32_t segment, uint8_t *to, int32_t length) {
  const headers *h = &s->at;
  uint8_t *l3 = to + h->l3;
  if (h->v6) {
    put16(l3 + IPV6_LENGTH, static_cast<uint32_t>(length - h->l3 - IPV6));
    return;
  }
  uint16_t total = static_cast<uint16_t>(length - h->l3);
  uint16_t id = static_cast<uint16_t>(get16(l3 + IPV4_ID) + segment);
  put16(l3 + IPV4_LENGTH, total);
  put16(l3 + IPV4_ID, id);
  uint16_t sum = checksum_add(checksum_add(s->network_sum, htons(total)), htons(id));
  uint16_t value = static_cast<uint16_t>(~sum);
  memcpy(l3 + IPV4_CHECKSUM, &value, sizeof value);
}

int32_t super_frame_segment(const super_frame *s, int32_t segment, uint8_t *to) {
  const headers *h = &s->at;
  int32_t from = h->payload + segment * s->size;
  int32_t bytes = s->length - from < s->size ? s->length - from : s->size;
  memcpy(to, s->frame, static_cast<size_t>(h->payload));
  put_network(s, segment, to, h->payload + bytes);

  uint8_t *l4 = to + h->l4;
  int32_t field = checksum_offset(h->tcp);
  uint16_t length = static_cast<uint16_t>(h->payload - h->l4 + bytes);
  uint16_t sum = checksum_add(s->transport_sum, htons(length));  // of the pseudo header
  if (h->tcp) {
    uint32_t sequence =
        get32(l4 + TCP_SEQUENCE) + static_cast<uint32_t>(segment) * static_cast<uint32_t>(s->size);
    put32(l4 + TCP_SEQUENCE, sequence);
    if (segment > 0) l4[TCP_FLAGS] &= static_cast<uint8_t>(~TCP_CWR);
    if (segment < s->segments - 1) l4[TCP_FLAGS] &= static_cast<uint8_t>(~(TCP_FIN | TCP_PSH));
    // As checksum_own, which would wait for what has just been written, and but for the checksum.
    sum = checksum_add(sum, htons(static_cast<uint16_t>(sequence >> 16)));
    sum = checksum_add(sum, htons(static_cast<uint16_t>(sequence)));
    sum = checksum_add(sum, htons(get16(l4 + TCP_OFFSET)));
  } else {
    put16(l4 + UDP_LENGTH, length);
    sum = checksum_add(sum, htons(length));
  }
  sum = checksum_add(sum, checksum_copy(to + h->payload, s->frame + from, static_cast<size_t>(bytes)));
  uint16_t value = h->tcp ? static_cast<uint16_t>(~sum) : checksum_field(sum);
  memcpy(l4 + field, &value, sizeof value);
  return h->payload + bytes;
}
