#include "coalesce.h"

#include <arpa/inet.h>

#include <cstring>

#include "checksum.h"

// ---- what a frame is

enum kind {
  NO_IP,     // nothing that has an order to keep with what is open
  NO_PORTS,  // a fragment, or IP of another protocol
  PORTS,     // TCP or UDP of a known flow, but not fit to join
  SEGMENT,   // of a known flow, and fit to join or to begin a train
};

static bool ipv4(const uint8_t *frame, int32_t length, headers *h, uint8_t *protocol, bool *fit) {
  const uint8_t *l3 = frame + h->l3;
  if (length < h->l3 + IPV4 || l3[0] != 0x45) return false;
  uint32_t fragment = get16(l3 + IPV4_FRAGMENT);
  if ((fragment & 0x3fff) != 0) return false;
  h->l4 = h->l3 + IPV4;
  *protocol = l3[IPV4_PROTOCOL];
  *fit = get16(l3 + IPV4_LENGTH) == length - h->l3;
  return true;
}

static bool ipv6(const uint8_t *frame, int32_t length, headers *h, uint8_t *protocol, bool *fit) {
  const uint8_t *l3 = frame + h->l3;
  if (length < h->l3 + IPV6 || l3[0] >> 4 != 6) return false;
  h->l4 = h->l3 + IPV6;
  *protocol = l3[IPV6_NEXT];
  *fit = get16(l3 + IPV6_LENGTH) == length - h->l4;
  return true;
}

static bool is_dhcp(const uint8_t *l4) {
  uint32_t port = get16(l4 + UDP_DESTINATION);
  return port == 67 || port == 68;
}

static kind read_headers(const uint8_t *frame, int32_t length, headers *h) {
  if (length < ETHERNET) return NO_IP;
  h->l3 = ETHERNET;
  uint16_t type = get16(frame + ETHERNET_TYPE);
  if (type == TYPE_VLAN && length >= ETHERNET + TAG) {
    h->l3 += TAG;
    type = get16(frame + ETHERNET_TYPE + TAG);
  }
  if (type != TYPE_IPV4 && type != TYPE_IPV6) {
    return type == TYPE_VLAN || type == TYPE_SVLAN ? NO_PORTS : NO_IP;
  }
  h->v6 = type == TYPE_IPV6;
  uint8_t protocol;
  bool fit;
  bool whole = h->v6 ? ipv6(frame, length, h, &protocol, &fit)
                     : ipv4(frame, length, h, &protocol, &fit);
  if (!whole) return NO_PORTS;
  const uint8_t *l4 = frame + h->l4;
  if (protocol == PROTOCOL_TCP && length >= h->l4 + TCP) {
    h->tcp = true;
    int32_t header = (l4[TCP_OFFSET] >> 4) * 4;
    h->payload = h->l4 + header;
    fit = fit && header >= TCP && (l4[TCP_FLAGS] & ~TCP_PSH) == TCP_ACK;
  } else if (protocol == PROTOCOL_UDP && length >= h->l4 + UDP) {
    h->tcp = false;
    h->payload = h->l4 + UDP;
    fit = fit && get16(l4 + UDP_LENGTH) == length - h->l4 && get16(l4 + UDP_CHECKSUM) != 0;
    fit = fit && !is_dhcp(l4);
  } else {
    return NO_PORTS;
  }
  return fit && h->payload < length ? SEGMENT : PORTS;
}

// Addresses and ports lie one behind the other.
static const uint8_t *flow_of(const uint8_t *frame, const headers *h, int32_t *length) {
  *length = h->v6 ? 36 : 12;
  return frame + h->l4 + 4 - *length;
}

static uint32_t flow_hash(const uint8_t *frame, const headers *h) {
  int32_t length;
  const uint8_t *flow = flow_of(frame, h, &length);
  uint32_t hash = h->tcp ? 6 : 17;
  for (int32_t at = 0; at < length; at += 4) {
    uint32_t word;
    memcpy(&word, flow + at, sizeof word);
    hash = (hash ^ word) * 0x9e3779b1u;
  }
  return hash;
}

static uint16_t pseudo_of(const uint8_t *frame, const headers *h, int32_t l4_length) {
  return checksum_pseudo(frame + h->l3 + (h->v6 ? IPV6_ADDRESSES : IPV4_ADDRESSES), h->v6,
                         h->tcp ? PROTOCOL_TCP : PROTOCOL_UDP, static_cast<uint32_t>(l4_length));
}

static bool same_flow(const frame_train *t, const uint8_t *frame, const headers *h) {
  int32_t length, other;
  const uint8_t *flow = flow_of(frame, h, &length);
  return t->at.tcp == h->tcp && t->at.v6 == h->v6 &&
         memcmp(flow, flow_of(t->first, &t->at, &other), static_cast<size_t>(length)) == 0;
}

// ---- whether a segment joins its flow's train

// Bits of the headers that are the same in all segments of a train: all but those of the fields below.
struct header_mask {
  uint8_t bytes[MAX_HEADERS];

  constexpr void leave(int32_t from, int32_t count) {
    for (int32_t at = from; at < from + count; at++) bytes[at] = 0;
  }
};

static constexpr header_mask mask_of(bool v6, bool tcp, int32_t l3) {
  header_mask mask = {};
  for (uint8_t &byte : mask.bytes) byte = 0xff;
  int32_t l4 = l3 + (v6 ? IPV6 : IPV4);
  mask.leave(l3 + (v6 ? IPV6_LENGTH : IPV4_LENGTH), 2);
  if (!v6) {
    mask.leave(l3 + IPV4_ID, 2);
    mask.leave(l3 + IPV4_CHECKSUM, 2);
  }
  if (tcp) {
    mask.leave(l4 + TCP_SEQUENCE, 4);
    mask.bytes[l4 + TCP_FLAGS] = static_cast<uint8_t>(~TCP_PSH);
    mask.leave(l4 + TCP_CHECKSUM, 2);
  } else {
    mask.leave(l4 + UDP_LENGTH, 4);  // and the checksum
  }
  return mask;
}

template <bool v6, bool tcp>
static constexpr header_mask masks[2] = {mask_of(v6, tcp, ETHERNET), mask_of(v6, tcp, ETHERNET + TAG)};

static const uint8_t *mask_for(const headers *h) {
  const header_mask *of = h->v6 ? h->tcp ? masks<true, true> : masks<true, false>
                                : h->tcp ? masks<false, true> : masks<false, false>;
  return of[h->l3 == ETHERNET ? 0 : 1].bytes;
}

static uint64_t get64(const uint8_t *at) {
  uint64_t word;
  memcpy(&word, at, sizeof word);
  return word;
}

// `length` of headers, which are never less than 42 bytes.
static bool same_bits(const uint8_t *a, const uint8_t *b, const uint8_t *mask, int32_t length) {
  uint64_t difference = 0;
  for (int32_t at = 0; at + 8 <= length; at += 8) difference |= (get64(a + at) ^ get64(b + at)) & get64(mask + at);
  int32_t last = length - 8;
  return (difference | ((get64(a + last) ^ get64(b + last)) & get64(mask + last))) == 0;
}

static bool continues_ip(const frame_train *t, const uint8_t *frame, int32_t length) {
  const headers *h = &t->at;
  const uint8_t *l3 = frame + h->l3, *first = t->first + h->l3;
  if (h->v6) return get16(l3 + IPV6_LENGTH) == length - h->l4;
  return get16(l3 + IPV4_LENGTH) == length - h->l3 &&
         ((get16(l3 + IPV4_FRAGMENT) & IPV4_DF) != 0 ||
          get16(l3 + IPV4_ID) == static_cast<uint16_t>(get16(first + IPV4_ID) + t->rows));
}

static bool continues_transport(const frame_train *t, const uint8_t *frame, int32_t length) {
  const uint8_t *l4 = frame + t->at.l4, *first = t->first + t->at.l4;
  if (t->at.tcp) {
    return get32(l4 + TCP_SEQUENCE) == get32(first + TCP_SEQUENCE) + static_cast<uint32_t>(t->total);
  }
  return get16(l4 + UDP_LENGTH) == length - t->at.l4 && get16(l4 + UDP_CHECKSUM) != 0;
}

// Ones' complement has two zeros (RFC 1624): this checksum is right where 0 is, and would come back as that.
constexpr uint16_t OTHER_ZERO = 0xffff;

// As checksum_sum would say of a header without options, which is too short to call it for.
static bool is_ipv4_right(const uint8_t *l3) {
  if (get16(l3 + IPV4_CHECKSUM) == OTHER_ZERO) return false;
  uint64_t sum = 0;
  for (int32_t at = 0; at < IPV4; at += 4) {
    uint32_t word;
    memcpy(&word, l3 + at, sizeof word);
    sum += word;
  }
  return checksum_add(checksum_add(sum & 0xffff, sum >> 16 & 0xffff), static_cast<uint32_t>(sum >> 32)) == 0xffff;
}

// Of the segment behind so many bytes of the train's payload. Copies its own, if the train is the gathered one.
static bool is_right(coalescer *c, const frame_train *t, const uint8_t *frame, int32_t length, int32_t before) {
  if (!t->at.v6 && !is_ipv4_right(frame + t->at.l3)) return false;
  if (t->at.tcp && get16(frame + t->at.l4 + TCP_CHECKSUM) == OTHER_ZERO) return false;
  const uint8_t *l4 = frame + t->at.l4, *payload = frame + t->at.payload;
  size_t bytes = static_cast<size_t>(length - t->at.payload);
  uint16_t sum = checksum_add(t->shared, htons(static_cast<uint16_t>(length - t->at.l4)));
  sum = checksum_add(sum, checksum_own(l4, t->at.tcp));
  bool copies = c->gathered == t;
  uint16_t rest = copies ? checksum_copy(c->payload.data() + before, payload, bytes) : checksum_sum(payload, bytes);
  return checksum_add(sum, rest) == 0xffff;
}

// Of any frame: one whose headers are the first one's, under the mask, is of its flow and as fit to join.
static bool joins(coalescer *c, frame_train *t, const uint8_t *frame, int32_t length) {
  const headers *h = &t->at;
  int32_t bytes = length - h->payload;
  if (t->ended || t->rows == TRAIN_SEGMENTS || bytes <= 0 || bytes > t->payload) return false;
  if (h->payload - h->l3 + t->total + bytes > MOST_IP) return false;
  if (!same_bits(frame, t->first, mask_for(h), h->payload)) return false;
  if (!continues_ip(t, frame, length) || !continues_transport(t, frame, length)) return false;
  if (!t->verified) {
    t->verified = true;
    size_t header = static_cast<size_t>(h->payload - h->l4);
    t->shared = checksum_add(pseudo_of(t->first, h, 0), checksum_shared(t->first + h->l4, h->tcp, header));
    if (c->gathered == nullptr) c->gathered = t;
    t->ended = !is_right(c, t, t->first, h->payload + t->payload, 0);
  }
  return !t->ended && is_right(c, t, frame, length, t->total);
}

// ---- trains

static void close_train(coalescer *c, frame_train *t) {
  if (!t->open) return;
  t->open = false;
  bool is_gathered = c->gathered == t;
  if (is_gathered) c->gathered = nullptr;
  const headers *h = &t->at;
  t->vnet = {};
  t->part[0] = {&t->vnet, sizeof t->vnet};
  if (t->rows == 1) {
    t->part[1] = {const_cast<uint8_t *>(t->first), static_cast<size_t>(h->payload + t->payload)};
    t->parts = 2;
    c->close(c->owner, t);
    return;
  }
  t->part[1] = {t->header, static_cast<size_t>(h->payload)};
  t->parts = 2 + t->rows;
  if (is_gathered) {
    t->part[2] = {c->payload.data(), static_cast<size_t>(t->total)};
    t->parts = 3;
  }

  uint8_t *l3 = t->header + h->l3, *l4 = t->header + h->l4;
  int32_t l4_length = h->payload - h->l4 + t->total;
  if (h->v6) {
    put16(l3 + IPV6_LENGTH, static_cast<uint32_t>(l4_length));
  } else {
    put16(l3 + IPV4_LENGTH, static_cast<uint32_t>(IPV4 + l4_length));
    put16(l3 + IPV4_CHECKSUM, 0);
    uint16_t sum = static_cast<uint16_t>(~checksum_sum(l3, IPV4));
    memcpy(l3 + IPV4_CHECKSUM, &sum, sizeof sum);
  }
  if (!h->tcp) put16(l4 + UDP_LENGTH, static_cast<uint32_t>(l4_length));
  int32_t field = checksum_offset(h->tcp);
  uint16_t pseudo = pseudo_of(t->header, h, l4_length);
  memcpy(l4 + field, &pseudo, sizeof pseudo);

  t->vnet.flags = layout::VNET_NEEDS_CSUM;
  t->vnet.gso_type = static_cast<uint8_t>(!h->tcp   ? layout::VNET_GSO_UDP_L4
                                          : h->v6 ? layout::VNET_GSO_TCPV6
                                                  : layout::VNET_GSO_TCPV4);
  t->vnet.hdr_len = static_cast<uint16_t>(h->payload);
  t->vnet.gso_size = static_cast<uint16_t>(t->payload);
  t->vnet.csum_start = static_cast<uint16_t>(h->l4);
  t->vnet.csum_offset = static_cast<uint16_t>(field);
  c->close(c->owner, t);
}

static void begin(frame_train *t, int32_t row, const uint8_t *frame, const headers *h,
                  int32_t length) {
  t->rows = 1;
  t->row[0] = row;
  t->first = frame;
  t->at = *h;
  t->payload = t->total = length - h->payload;
  t->open = true;
}

static void pass(coalescer *c, int32_t row, const uint8_t *frame, int32_t length) {
  headers whole = {};
  begin(&c->alone, row, frame, &whole, length);
  close_train(c, &c->alone);
}

static void open_train(coalescer *c, int32_t row, const uint8_t *frame, const headers *h,
                       int32_t length, uint32_t flow) {
  frame_train *t = &c->train[c->next];
  c->next = (c->next + 1) % OPEN_TRAINS;
  close_train(c, t);
  begin(t, row, frame, h, length);
  c->latest = t;
  t->flow = flow;
  t->verified = false;
  t->ended = h->tcp && (frame[h->l4 + TCP_FLAGS] & TCP_PSH) != 0;
}

static void join(frame_train *t, int32_t row, const uint8_t *frame, int32_t length) {
  const headers *h = &t->at;
  int32_t bytes = length - h->payload;
  if (t->rows == 1) {
    memcpy(t->header, t->first, static_cast<size_t>(h->payload));
    t->part[2] = {const_cast<uint8_t *>(t->first) + h->payload, static_cast<size_t>(t->payload)};
  }
  t->part[2 + t->rows] = {const_cast<uint8_t *>(frame) + h->payload, static_cast<size_t>(bytes)};
  t->row[t->rows++] = row;
  t->total += bytes;
  bool push = h->tcp && (frame[h->l4 + TCP_FLAGS] & TCP_PSH) != 0;
  if (push) t->header[h->l4 + TCP_FLAGS] |= TCP_PSH;
  t->ended = push || bytes < t->payload;
}

static frame_train *find(coalescer *c, const uint8_t *frame, const headers *h, uint32_t flow) {
  for (frame_train *t = c->train; t < c->train + OPEN_TRAINS; t++) {
    if (t->open && t->flow == flow && same_flow(t, frame, h)) return t;
  }
  return nullptr;
}

void coalesce(coalescer *c, int32_t row, const uint8_t *frame, int32_t length) {
  // Mostly it continues what the frame before it did, and then nothing of this is to be asked.
  frame_train *latest = c->latest;
  if (latest != nullptr && latest->open && joins(c, latest, frame, length)) return join(latest, row, frame, length);

  headers h = {};
  kind k = read_headers(frame, length, &h);
  if (k == NO_PORTS) coalesce_end(c);
  if (k == NO_IP || k == NO_PORTS) return pass(c, row, frame, length);

  uint32_t flow = flow_hash(frame, &h);
  frame_train *t = find(c, frame, &h, flow);
  bool wanted = k == SEGMENT && (h.tcp ? c->tcp : c->udp);
  if (t != nullptr) {
    if (wanted && t != latest && joins(c, t, frame, length)) {
      c->latest = t;
      return join(t, row, frame, length);
    }
    close_train(c, t);
  }
  if (wanted) open_train(c, row, frame, &h, length, flow);
  else pass(c, row, frame, length);
}

void coalesce_end(coalescer *c) {
  for (int i = 0; i < OPEN_TRAINS; i++) close_train(c, &c->train[(c->next + i) % OPEN_TRAINS]);
}
