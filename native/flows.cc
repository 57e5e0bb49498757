#include "flows.h"

#include <uv.h>

#include <algorithm>
#include <cstring>

#include "checksum.h"
#include "headers.h"
#include "pace.h"
#include "tap_set.h"
#include "udp.h"

// For how long a thread has to have slept for its caches to be another's, and for how long it is then looked up what
// wakes it: a round trip's time. Whoever is woken more often is warm, and quicker without.
static constexpr uint64_t COLD_NS = 1'000'000, WARM_UP_NS = 1'000'000;

static_assert(MOST_HELD * (HELD_BYTES + layout::HEADROOM + 16) + FRAME_ROOM <= layout::SLAB_BYTES);

static constexpr int32_t NOWHERE = -1;
static constexpr int32_t VXLAN = 8;
static constexpr int32_t MACS = 12;
static constexpr int32_t PORTS = 4;
static constexpr uint8_t PROTOCOL_ICMPV6 = 58, PROTOCOL_SCTP = 132;
static constexpr uint8_t ECN = 3;

// ---- keys

static void add(flow_key *key, const void *from, int32_t bytes) {
  memcpy(key->bytes + key->length, from, static_cast<size_t>(bytes));
  key->length += bytes;
}

static bool has_ports(uint8_t protocol) {
  return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || protocol == PROTOCOL_SCTP;
}

// Where the addresses end, and with them all that is decided by; 0: it is decided by more than that.
static int32_t read_ipv4(const uint8_t *frame, flow_key *key) {
  const uint8_t *header = frame + ETHERNET;
  bool plain = header[0] == 0x45 && (get16(header + IPV4_FRAGMENT) & ~IPV4_DF) == 0;
  if (!plain) return 0;
  add(key, header, 2);  // with the TOS
  add(key, header + IPV4_PROTOCOL, 1);
  add(key, header + IPV4_ADDRESSES, 8);
  return ETHERNET + IPV4;
}

static int32_t read_ipv6(const uint8_t *frame, flow_key *key) {
  const uint8_t *header = frame + ETHERNET;
  uint8_t next = header[IPV6_NEXT];
  bool plain = header[0] >> 4 == 6 && (has_ports(next) || next == PROTOCOL_ICMPV6);
  if (!plain) return 0;
  uint8_t traffic_class[2] = {header[0], static_cast<uint8_t>(header[1] & 0xf0)};
  add(key, traffic_class, 2);
  add(key, &next, 1);
  add(key, header + IPV6_ADDRESSES, 32);
  return ETHERNET + IPV6;
}

bool flow_key_of_frame(int slot, const uint8_t *frame, int32_t length, flow_key *key) {
  *key = {};
  if (length < ETHERNET + IPV4) return false;
  uint16_t type = get16(frame + ETHERNET_TYPE);
  if (type != TYPE_IPV4 && (type != TYPE_IPV6 || length < ETHERNET + IPV6)) return false;
  add(key, &slot, sizeof slot);
  add(key, frame, MACS);
  int32_t end = type == TYPE_IPV4 ? read_ipv4(frame, key) : read_ipv6(frame, key);
  if (end == 0) return false;
  uint8_t protocol = frame[ETHERNET + (type == TYPE_IPV4 ? IPV4_PROTOCOL : IPV6_NEXT)];
  if (!has_ports(protocol)) return true;
  if (length < end + PORTS) return false;
  add(key, frame + end, PORTS);
  return true;
}

// Of a datagram that is not marked for congestion: who sent it, its VXLAN header and its MACs.
static bool key_of_datagram(const int32_t *address, int32_t tos, const uint8_t *payload, int32_t length,
                            flow_key *key) {
  *key = {};
  if ((tos & ECN) != 0 || length < VXLAN + ETHERNET) return false;
  add(key, address, layout::ADDRESS_WORDS * sizeof(int32_t));
  add(key, payload, VXLAN + MACS);
  return true;
}

// ---- the table

static flow *place_of(flow_table *f, const flow_key *key) {
  uint32_t hash = 2166136261u;  // FNV-1a
  for (int i = 0; i < key->length; i++) hash = (hash ^ key->bytes[i]) * 16777619u;
  return &f->known[(hash ^ hash >> 16) % FLOWS];
}

static bool holds(const flow_table *f, const flow_guard *g) {
  for (int i = 0; i < 3; i++) {
    if (load(f->guards + g->at + i) != g->words[i]) return false;
  }
  return true;
}

static const flow *find(flow_table *f, const flow_key *key) {
  const flow *found = place_of(f, key);
  bool same = found->key.length == key->length && memcmp(found->key.bytes, key->bytes, sizeof key->bytes) == 0;
  return same && holds(f, &found->by) && (found->u == nullptr || holds(f, &found->sender)) ? found : nullptr;
}

// What TypeScript offers. False when it offers nothing.
static bool read_guard(const flow_table *f, const batch *b, int which, flow_guard *g) {
  const int32_t *offer = b->columns + layout::REPEAT + layout::GUARD_WORDS * which;
  g->at = load(offer);
  for (int i = 0; i < 3; i++) g->words[i] = load(offer + 1 + i);
  return g->at > 0 && g->at <= f->guard_words - 3;
}

void flows_forget(flow_table *f) {
  for (flow &each : f->known) each.key.length = 0;
}

void flows_learn_encap(flow_table *f, udp *u, const batch *b) {
  flow now = {};
  int32_t offset = load(b->columns + layout::OUT_OFFSET), length = load(b->columns + layout::OUT_LENGTH);
  int32_t slot = load(b->columns + layout::OUT_TAP);
  if (!read_guard(f, b, 0, &now.by) || !read_guard(f, b, 1, &now.sender)) return;
  if (!in_slab(offset, length) || length < VXLAN) return;
  if (!flow_key_of_frame(slot, b->slab + offset + VXLAN, length - VXLAN, &now.key)) return;
  now.u = u;
  now.remote = load(b->columns + layout::OUT_REMOTE);
  now.hash = load(b->columns + layout::OUT_HASH);
  now.tos = load(b->columns + layout::OUT_TOS) & 0xff;
  memcpy(now.header, b->slab + offset, VXLAN);
  *place_of(f, &now.key) = now;
}

void flows_learn_decap(flow_table *f, const batch *b) {
  flow now = {};
  int32_t offset = load(b->columns + layout::IN_OFFSET), length = load(b->columns + layout::IN_LENGTH);
  int32_t tos = load(b->columns + layout::IN_TOS);
  if (!read_guard(f, b, 0, &now.by) || !in_slab(offset, length)) return;
  if (!key_of_datagram(b->columns + layout::IN_ADDRESS, tos, b->slab + offset, length, &now.key)) return;
  now.slot = load(b->columns + layout::OUT_TAP);
  *place_of(f, &now.key) = now;
}

// ---- what wakes the thread

static bool wakes_cold(flow_table *f) {
  uint64_t now = uv_hrtime();
  if (now - f->awake >= COLD_NS) f->until = now + WARM_UP_NS;
  f->awake = now;
  return now < f->until && f->underlays > 0 && f->taps != nullptr && !pace_runs_first();
}

static bool complete_checksum(held *h) {
  if ((h->vnet.flags & layout::VNET_NEEDS_CSUM) == 0) return true;
  size_t length = static_cast<size_t>(h->length);
  if (checksum_complete(h->bytes + layout::HEADROOM, length, h->vnet.csum_start, h->vnet.csum_offset) < 0) return false;
  h->vnet.flags &= static_cast<uint8_t>(~layout::VNET_NEEDS_CSUM);
  return true;
}

static bool move_frame(flow_table *f, held *h) {
  uint8_t *frame = h->bytes + layout::HEADROOM;
  bool lone = h->length <= HELD_BYTES && h->vnet.gso_type == layout::VNET_GSO_NONE;
  flow_key key;
  h->asks = lone && flow_key_of_frame(h->slot, frame, h->length, &key);
  const flow *known = h->asks ? find(f, &key) : nullptr;
  if (known == nullptr || !complete_checksum(h)) return false;
  memcpy(frame - VXLAN, known->header, VXLAN);
  if (!udp_send_one(known->u, known->remote, known->hash, known->tos, frame - VXLAN, h->length + VXLAN)) return false;
  h->asks = false;
  h->target = known->remote;
  return true;
}

// Nothing waits any more: whether anything did, or the thread was woken for nothing.
static bool holds_any(const flow_table *f) { return f->frames > 0 || f->datagrams > 0; }

static bool is_full(const flow_table *f) { return f->frames == MOST_HELD || f->datagrams == MOST_HELD; }

// Until one is not moved, which the ones behind it are not to overtake. Returns whether nothing waits any more.
static bool move_frames(flow_table *f) {
  bool moved = true;
  while (moved && !is_full(f)) {
    held *h = &f->frame[f->frames];
    int read = tap_set_read_one(f->taps, h, f->rest);
    if (read <= 0) return read == 0 && holds_any(f);
    f->frames++;
    h->target = NOWHERE;
    moved = move_frame(f, h);
  }
  return false;
}

bool flows_move_from_taps(flow_table *f) { return wakes_cold(f) && move_frames(f); }

static bool move_datagram(flow_table *f, held *h) {
  bool lone = !h->truncated && h->length <= HELD_BYTES && h->segment >= h->length;
  uint8_t *payload = h->bytes + layout::HEADROOM - VXLAN;
  flow_key key;
  h->asks = lone && key_of_datagram(h->address, h->tos, payload, h->length, &key);
  const flow *known = h->asks ? find(f, &key) : nullptr;
  if (known == nullptr || !tap_set_write_one(f->taps, known->slot, payload + VXLAN, h->length - VXLAN)) return false;
  h->asks = false;
  h->target = known->slot;
  return true;
}

// One at a time, for it may be answered at once.
bool flows_move_from_underlay(flow_table *f, udp *u) {
  if (!wakes_cold(f)) return false;
  while (!is_full(f)) {
    held *h = &f->datagram[f->datagrams];
    int received = udp_receive_one(u, h, f->rest);
    if (received <= 0) return received == 0 && holds_any(f);
    f->datagrams++;
    h->target = NOWHERE;
    if (!move_datagram(f, h) || !move_frames(f)) return false;
  }
  return false;
}

// ---- what TypeScript is handed

static void mark(flow_table *f, const held *h, const batch *b, int row, int32_t offset) {
  if (h->target == NOWHERE) return;
  b->columns[layout::IN_FLAGS + row] |= layout::REPEATED;
  b->columns[layout::IN_TARGET + row] = h->target;
  f->moved_at[f->moved] = offset;
  f->moved_to[f->moved++] = h->target;
}

static int32_t flags_of(const held *h) {
  return (h->truncated ? layout::TRUNCATED : 0) | (h->asks ? layout::ASKS : 0);
}

static void copy(const flow_table *f, const held *h, int32_t begin, uint8_t *to) {
  int32_t here = std::min(h->length, HELD_BYTES);
  memcpy(to, h->bytes + begin, static_cast<size_t>(here));
  if (h->length > here) memcpy(to + here, f->rest, static_cast<size_t>(h->length - here));
}

// One behind the other, each as well aligned as the first.
static int32_t next_offset(int32_t offset, const held *h) {
  return offset + ((h->length + layout::HEADROOM + 15) & ~15);
}

// What was offered of the batch before, or moved, is so no more.
static void begin(flow_table *f, const batch *b) {
  b->columns[layout::REPEAT] = 0;
  f->filled = b;
  f->moved = 0;
  f->awake = uv_hrtime();
}

int flows_take_frames(flow_table *f, const batch *b) {
  begin(f, b);
  int32_t offset = layout::HEADROOM;
  for (int row = 0; row < f->frames; row++) {
    const held *h = &f->frame[row];
    copy(f, h, layout::HEADROOM, b->slab + offset);
    *vnet_of(b, row) = h->vnet;
    b->columns[layout::IN_OFFSET + row] = offset;
    b->columns[layout::IN_LENGTH + row] = b->columns[layout::IN_SEGMENT + row] = h->length;
    b->columns[layout::IN_FLAGS + row] = flags_of(h);
    b->columns[layout::IN_TAP + row] = h->slot;
    mark(f, h, b, row, offset - VXLAN);
    offset = next_offset(offset, h);
  }
  int rows = f->frames;
  f->frames = 0;
  return rows;
}

int flows_take_datagrams(flow_table *f, const batch *b) {
  begin(f, b);
  int32_t offset = layout::HEADROOM - VXLAN;
  for (int row = 0; row < f->datagrams; row++) {
    const held *h = &f->datagram[row];
    copy(f, h, layout::HEADROOM - VXLAN, b->slab + offset);
    b->columns[layout::IN_OFFSET + row] = offset;
    b->columns[layout::IN_LENGTH + row] = h->length;
    b->columns[layout::IN_SEGMENT + row] = h->segment;
    b->columns[layout::IN_FLAGS + row] = flags_of(h) | (f->frames > 0 ? layout::ANSWERED : 0);
    b->columns[layout::IN_TOS + row] = h->tos;
    memcpy(b->columns + layout::IN_ADDRESS + row * layout::ADDRESS_WORDS, h->address, sizeof h->address);
    mark(f, h, b, row, offset + VXLAN);
    offset = next_offset(offset, h);
  }
  int rows = f->datagrams;
  f->datagrams = 0;
  return rows;
}

bool flows_have_moved(const flow_table *f, const batch *b, int row, int32_t column) {
  if (f == nullptr || f->filled != b) return false;
  for (int i = 0; i < f->moved; i++) {
    int32_t offset = load(b->columns + layout::OUT_OFFSET + row);
    if (f->moved_at[i] == offset && f->moved_to[i] == load(b->columns + column + row)) return true;
  }
  return false;
}
