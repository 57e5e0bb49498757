// Sending: which socket a datagram leaves by, and with which others.
//
// A frame leaves as one datagram, from where it lies. A super-frame leaves as one for each segment, whose payload is
// copied behind its headers while it is summed up: the kernel copies one piece faster than two for each segment
// (bench/RESULTS.md). That is done once, or twice where some had to leave meanwhile, however many remotes the frame
// goes to. Super-frames that can share trains are cut as if they were one.
//
// Neighbours, segments or whole frames, that go from one socket to one remote and are equally long (the last may
// be shorter) leave as a train: one message that carries their length, cut into datagrams by the network card, or
// by the kernel just before it (UDP_SEGMENT). So a train crosses the stack once. Only the message before is
// asked, hence the order within a socket, and with it within a flow, is that of the rows; but for one frame's to
// hundreds of remotes, which leave in no order (flood.h).
//
// What a train is refused for is not told by row: its datagrams are then sent one by one, and each gets
// its own error. If all of them leave, it was the cutting that the device (EIO) or the kernel (EINVAL)
// cannot do, and no more trains are made; unless they may be fragmented, for what is to be is not cut (EINVAL).
//
// What is for narrow paths (src/remotes.ts) leaves by itself, for DF is the socket's; but for the datagram by which a
// path is found to be narrow, and those after it.

#include <netinet/udp.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "checksum.h"
#include "segment.h"
#include "udp.h"

static constexpr uint8_t NO_SOCKET = 255;
static_assert(MAX_FAN < NO_SOCKET, "choice is a byte");

static constexpr int TRAIN_ROWS = 64;          // UDP_MAX_SEGMENTS before Linux 6.9
static constexpr int32_t TRAIN_BYTES = 65000;  // a payload that every family can carry

// The hash is the dataplane's, and its best bits may be anywhere. One multiplication was not enough:
// 256 evenly spaced hashes shared 7 of 16 sockets. These are the last steps of MurmurHash3.
static int choose(const udp *u, int32_t hash) {
  uint32_t mixed = static_cast<uint32_t>(hash);
  mixed = (mixed ^ mixed >> 16) * 0x85ebca6bu;
  mixed = (mixed ^ mixed >> 13) * 0xc2b2ae35u;
  mixed ^= mixed >> 16;
  return static_cast<int>(static_cast<uint64_t>(mixed) * static_cast<uint32_t>(u->fan) >> 32);
}

// Null if it is none, or of the other family.
static const int32_t *words_of(const udp *u, int32_t remote) {
  if (remote <= 0 || remote >= layout::REMOTE_ROWS) return nullptr;
  const int32_t *words = u->remotes + remote * layout::REMOTE_WORDS;
  return load(words + layout::REMOTE_FAMILY) == u->family ? words : nullptr;
}

static const int32_t *remote_of(const udp *u, const batch *b, int row) {
  return words_of(u, load(b->columns + layout::OUT_REMOTE + row));
}

// Groups the rows by the socket they go to, in their order (a counting sort): those of socket s are
// order[begin[s]] to order[begin[s + 1] - 1], and so many bytes. Returns how many have left before (flows.h).
static int sort_rows(udp *u, const batch *b, int count, int *begin, int64_t *bytes) {
  int next[MAX_FAN + 1] = {};
  int moved = 0;
  for (int row = 0; row < count; row++) {
    u->choice[row] = NO_SOCKET;
    if (remote_of(u, b, row) == nullptr) continue;
    if (flows_have_moved(u->flows, b, row, layout::OUT_REMOTE)) {
      b->columns[layout::OUT_ERROR + row] = 0;
      moved++;
      continue;
    }
    int s = choose(u, load(b->columns + layout::OUT_HASH + row));
    u->choice[row] = static_cast<uint8_t>(s);
    next[s + 1]++;
    bytes[s] += load(b->columns + layout::OUT_LENGTH + row);
  }
  for (int s = 0; s < u->fan; s++) next[s + 1] += next[s];
  memcpy(begin, next, sizeof next);
  for (int row = 0; row < count; row++) {
    if (u->choice[row] != NO_SOCKET) u->order[next[u->choice[row]]++] = static_cast<uint16_t>(row);
  }
  return moved;
}

static void set_name(const udp *u, const int32_t *remote, udp_name *name, socklen_t *length) {
  const int32_t *address = remote + layout::REMOTE_ADDRESS;
  uint16_t port = htons(static_cast<uint16_t>(load(remote + layout::REMOTE_PORT)));
  if (u->family == 4) {
    name->v4.sin_family = AF_INET;
    name->v4.sin_port = port;
    name->v4.sin_addr.s_addr = static_cast<uint32_t>(load(address + 3));
    *length = sizeof name->v4;
    return;
  }
  name->v6.sin6_family = AF_INET6;
  name->v6.sin6_port = port;
  name->v6.sin6_flowinfo = 0;
  memcpy(&name->v6.sin6_addr, address, 16);
  name->v6.sin6_scope_id = IN6_IS_ADDR_LINKLOCAL(&name->v6.sin6_addr) ? u->scope : 0;
  *length = sizeof name->v6;
}

static bool is_narrow(const udp *u, const int32_t *remote) {
  int32_t mtu = load(remote + layout::REMOTE_PATH_MTU);
  return mtu != 0 && mtu < (u->family == 4 ? layout::NARROW_IPV4 : layout::NARROW_IPV6);
}

// ---- sending what was gathered

static void set_errors(const udp *u, const batch *b, const train *t, int error) {
  if (error == 0) return;
  const uint16_t *row = u->out_row + t->first;
  for (int32_t i = 0; i < t->datagrams; i++) b->columns[layout::OUT_ERROR + row[i]] = error;
}

// What goes with a message: the length of a train's datagrams, and the TOS unless it is the socket's.
static void set_control(const udp *u, train *t, msghdr *header) {
  header->msg_control = t->control;
  header->msg_controllen = sizeof t->control;
  cmsghdr *c = CMSG_FIRSTHDR(header);
  size_t used = 0;
  if (t->datagrams > 1) {
    uint16_t segment = static_cast<uint16_t>(t->segment);
    c->cmsg_level = IPPROTO_UDP;
    c->cmsg_type = UDP_SEGMENT;
    c->cmsg_len = CMSG_LEN(sizeof segment);
    memcpy(CMSG_DATA(c), &segment, sizeof segment);
    used += CMSG_SPACE(sizeof segment);
  }
  if (t->tos != 0) {
    c = reinterpret_cast<cmsghdr *>(t->control + used);
    c->cmsg_level = u->family == 4 ? IPPROTO_IP : IPPROTO_IPV6;
    c->cmsg_type = u->family == 4 ? IP_TOS : IPV6_TCLASS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &t->tos, sizeof(int));
    used += CMSG_SPACE(sizeof(int));
  }
  header->msg_controllen = used;
  if (used == 0) header->msg_control = nullptr;
}

static void allow_fragments(const udp *u, bool allowed) {
  if (u->discovery == WHOLE) udp_set_discovery(u, u->out_fd, allowed ? fragmented(u->family) : WHOLE);
}

// Whether what does not fit may be sent all the same, to be fragmented, as has just been found.
static bool turns_narrow(udp *u, int32_t remote, int error) {
  if (error != EMSGSIZE || u->narrow || !is_narrow(u, u->remotes + remote * layout::REMOTE_WORDS)) return false;
  allow_fragments(u, true);
  return u->narrow = true;
}

// Returns 0 or errno. An error of datagrams before it is no reason not to send this one.
static int send_alone(udp *u, const msghdr *header, int32_t remote) {
  for (bool again = false;; again = true) {
    ssize_t sent = sendmsg(u->out_fd, header, MSG_DONTWAIT);
    if (sent >= 0) {
      if (again) udp_left_again(u, remote, static_cast<int32_t>(sent));
      return 0;
    }
    int error = errno;
    if (udp_was_icmp(u, remote, error) && !again) continue;
    if (!turns_narrow(u, remote, error)) return error;
  }
}

// One by one, so that each has an error of its own. Returns whether all of them left.
static bool send_apart(udp *u, const batch *b, int message) {
  msghdr alone = u->out[message].msg_hdr;
  const iovec *part = alone.msg_iov, *end = part + alone.msg_iovlen;
  iovec datagram = {};
  alone.msg_iov = &datagram;
  alone.msg_iovlen = 1;
  train one = u->out_train[message];
  one.datagrams = 1;
  set_control(u, &one, &alone);
  bool all = true;
  for (; part < end; part++) {
    for (size_t at = 0; at < part->iov_len; at += datagram.iov_len, one.first++) {
      datagram.iov_base = static_cast<uint8_t *>(part->iov_base) + at;
      datagram.iov_len = std::min(part->iov_len - at, static_cast<size_t>(one.segment));
      int error = send_alone(u, &alone, one.remote);
      set_errors(u, b, &one, error);
      all = all && error == 0;
    }
  }
  return all;
}

// sendmmsg(2) stops before the message that fails and tells why only if that is the first, so it is
// called again from there: that one's error is its rows', the next ones get their own chance. A full
// socket stays full: then all the rest fail. What ICMP told about datagrams before is no
// reason: then it is tried once more. A full interface (ENOBUFS) dropped a train as a whole.
static void send_range(udp *u, const batch *b, int begin, int end) {
  int again = -1;
  for (int message = begin; message < end;) {
    int n = sendmmsg(u->out_fd, u->out + message, static_cast<unsigned>(end - message), MSG_DONTWAIT);
    if (n > 0) {
      if (again == message) udp_left_again(u, u->out_train[message].remote, u->out_train[message].segment);
      message += n;
      continue;
    }
    int error = errno;
    if (udp_was_icmp(u, u->out_train[message].remote, error) && again != message) {
      again = message;
    } else if (turns_narrow(u, u->out_train[message].remote, error)) {
      continue;
    } else if (error == EAGAIN) {
      while (message < end) set_errors(u, b, &u->out_train[message++], error);
    } else if (u->out_train[message].datagrams > 1 && error != ENOBUFS) {
      bool all = send_apart(u, b, message);
      bool whole = !u->narrow && u->discovery == WHOLE;
      if (all && (error == EIO || (error == EINVAL && whole))) u->segments = false;
      message++;
    } else {
      set_errors(u, b, &u->out_train[message++], error);
    }
  }
}

// The frame of a message goes to another remote with each one until there, and so does the train of a super-frame's
// segments that are one train.
static int end_of_frame(const udp *u, int message) {
  const void *frame = u->out[message].msg_hdr.msg_iov->iov_base;
  do message++;
  while (message < u->messages && u->out[message].msg_hdr.msg_iov->iov_base == frame);
  return message;
}

// What goes to so many remotes that two threads send it leaves after what is before it, and before what is after it.
static void send_all(udp *u, const batch *b) {
  int begin = 0;
  for (int at = 0, end; u->messages - begin >= FLOOD_MESSAGES && at < u->messages; at = end) {
    end = end_of_frame(u, at);
    if (end - at < FLOOD_MESSAGES) continue;
    if (u->second == nullptr) u->second = flood_open();
    if (u->second == nullptr) break;
    send_range(u, b, begin, at);
    begin = at;
    unsent left;
    if (!flood_send(u->second, u->out_fd, u->out + at, end - at, &left)) continue;
    begin = end;
    if (left.pieces > 0) udp_take_errors(u);
    for (int i = 0; i < left.pieces; i++) send_range(u, b, at + left.piece[i].begin, at + left.piece[i].end);
  }
  send_range(u, b, begin, u->messages);
}

static void start_over(udp *u) {
  u->messages = u->datagrams = u->parts = u->cut = 0;
}

static void flush(udp *u, const batch *b) {
  if (u->narrow) allow_fragments(u, true);
  send_all(u, b);
  if (u->narrow) allow_fragments(u, false);
  start_over(u);
}

// ---- gathering

struct datagram {
  int row;
  int32_t remote;
  const int32_t *words;  // of the remote
  uint8_t *begin;
  int32_t length;
  int32_t most;  // datagrams of a train that begins with this one
  int32_t tos;
};

// Whether a datagram may ride with the message before it: same remote, same length or a shorter one
// at the end. Order within a socket stays as it is.
static bool rides(const udp *u, const datagram *d) {
  if (u->messages == 0 || !u->segments) return false;
  if (u->narrow && u->family == 6) return false;  // the kernel fragments no trains
  const train *t = &u->out_train[u->messages - 1];
  return !t->ended && t->remote == d->remote && t->tos == d->tos && d->length > 0 &&
         d->length <= t->segment && t->bytes + d->length <= TRAIN_BYTES && t->datagrams < t->most &&
         t->most <= d->most;  // or segments behind a frame would not make equal trains
}

// To the last message, whose last part a segment mostly continues.
static void add_part(udp *u, const datagram *d) {
  msghdr *header = &u->out[u->messages - 1].msg_hdr;
  size_t length = static_cast<size_t>(d->length);
  iovec *part = &u->out_part[u->parts];
  if (header->msg_iovlen > 0 && static_cast<uint8_t *>(part[-1].iov_base) + part[-1].iov_len == d->begin) {
    part[-1].iov_len += length;
    return;
  }
  *part = {d->begin, length};
  u->parts++;
  header->msg_iovlen++;
}

static void add_datagram(udp *u, const datagram *d) {
  u->out_row[u->datagrams++] = static_cast<uint16_t>(d->row);
  if (rides(u, d)) {
    train *t = &u->out_train[u->messages - 1];
    t->bytes += d->length;
    t->datagrams++;
    t->ended = d->length < t->segment;
    if (t->datagrams == 2) set_control(u, t, &u->out[u->messages - 1].msg_hdr);
    add_part(u, d);
    return;
  }
  train *t = &u->out_train[u->messages];
  msghdr *header = &u->out[u->messages].msg_hdr;
  set_name(u, d->words, &u->out_name[u->messages], &header->msg_namelen);
  header->msg_iov = u->out_part + u->parts;
  header->msg_iovlen = 0;
  t->remote = d->remote;
  t->first = u->datagrams - 1;
  t->segment = t->bytes = d->length;
  t->datagrams = 1;
  t->most = d->most;
  t->ended = false;
  t->tos = d->tos;
  set_control(u, t, header);
  u->messages++;
  add_part(u, d);
}

// For so many bytes in out_cut.
static void make_room(udp *u, const batch *b, const datagram *d, int bytes) {
  static_assert(OUT_CUT >= layout::HEADROOM + MOST_HEADERS + UINT16_MAX);
  bool narrow = is_narrow(u, d->words);
  if (u->datagrams == OUT_DATAGRAMS || u->cut + bytes > OUT_CUT || narrow != u->narrow) {
    if (u->messages > 0) flush(u, b);
  }
  u->narrow = narrow;
}

// A row as it is read: what all of its datagrams have in common, and how it is cut.
struct outgoing {
  datagram common;
  int32_t in_row, offset;
  bool is_super;
  super_frame cut;
  int32_t prefix;  // bytes in front of the frame, the VXLAN header, which go in front of every segment
};

// Returns 0 or -errno.
static int read_row(const udp *u, const batch *b, int row, outgoing *o) {
  o->offset = load(b->columns + layout::OUT_OFFSET + row);
  o->in_row = load(b->columns + layout::OUT_ROW + row);
  datagram *d = &o->common;
  *d = {};
  d->row = row;
  d->length = load(b->columns + layout::OUT_LENGTH + row);
  d->remote = load(b->columns + layout::OUT_REMOTE + row);
  d->tos = load(b->columns + layout::OUT_TOS + row) & 0xff;
  d->words = remote_of(u, b, row);
  if (d->words == nullptr || !in_slab(o->offset, d->length)) return -EINVAL;
  if (o->in_row < 0 || o->in_row >= layout::IN_ROWS) return -EINVAL;
  const virtio_net_hdr vnet = *vnet_of(b, o->in_row);
  o->is_super = vnet.gso_type != layout::VNET_GSO_NONE;
  if (!o->is_super) return 0;
  int32_t frame = load(b->columns + layout::IN_OFFSET + o->in_row);
  if (frame < o->offset) return -EINVAL;  // asked first, for a difference of any two may overflow
  o->prefix = frame - o->offset;
  if (o->prefix > layout::HEADROOM || o->prefix > d->length) return -EINVAL;
  return super_frame_read(&o->cut, b->slab + o->offset + o->prefix, d->length - o->prefix, &vnet);
}

// Whether the segments of both can ride in one train. A short one ends it.
static bool shares_trains(const outgoing *o, const outgoing *before) {
  const super_frame *s = &o->cut, *t = &before->cut;
  bool whole = t->length == t->at.payload + t->segments * t->size;
  return whole && o->is_super && s->size == t->size && s->at.payload == t->at.payload &&
         o->prefix == before->prefix && o->common.remote == before->common.remote &&
         o->common.tos == before->common.tos;
}

// Equal trains: of 47 segments 24 and 23, not 44 and 3, which would cost the receiver as much as 44.
static int32_t train_of(int32_t segments, int32_t bytes) {
  int32_t by_bytes = TRAIN_BYTES / bytes;
  int32_t most = by_bytes < 1 ? 1 : by_bytes < TRAIN_ROWS ? by_bytes : TRAIN_ROWS;
  int32_t trains = (segments + most - 1) / most;
  return (segments + trains - 1) / trains;
}

// The run that begins with order[at], before order[end]: how far it goes, and the datagrams of its trains. TCP that is
// written 128 KiB at a time comes as two super-frames of 46 segments and one of two, and leaves as three trains of
// 32, 32 and 30; cut each by itself they would make five.
static void measure_run(udp *u, const batch *b, const outgoing *first, int at, int end) {
  const super_frame *s = &first->cut;
  int32_t segments = s->segments;
  outgoing before = *first, next;
  while (++at < end && read_row(u, b, u->order[at], &next) == 0 && shares_trains(&next, &before)) {
    segments += next.cut.segments;
    before = next;
  }
  u->run_end = at;
  u->run_most = train_of(segments, first->prefix + s->at.payload + s->size);
}

// To one more remote: they are as they were.
static void add_segments_again(udp *u, const batch *b, datagram *d) {
  const last_cut *last = &u->last;
  for (int32_t at = last->begin; at < last->end; at += last->step) {
    make_room(u, b, d, 0);
    u->cut = std::max(u->cut, last->end);  // or the next super-frame's would take their place
    d->begin = u->out_cut.data() + at;
    d->length = std::min(last->step, last->end - at);
    add_datagram(u, d);
  }
}

static void add_segments(udp *u, const batch *b, const outgoing *o) {
  const super_frame *s = &o->cut;
  datagram d = o->common;
  d.most = u->run_most;
  last_cut *last = &u->last;
  if (o->in_row == last->row && o->prefix == last->prefix) return add_segments_again(u, b, &d);
  int32_t begin = u->cut, bytes = 0;
  last->row = -1;
  for (int32_t segment = 0; segment < s->segments; segment++) {
    make_room(u, b, &d, o->prefix + s->at.payload + s->size);
    d.begin = u->out_cut.data() + u->cut;
    memcpy(d.begin, s->frame - o->prefix, static_cast<size_t>(o->prefix));
    d.length = o->prefix + super_frame_segment(s, segment, d.begin + o->prefix);
    u->cut += d.length;
    bytes += d.length;
    add_datagram(u, &d);
  }
  bool are_all_there = u->cut == begin + bytes;  // none has left to make room for others
  if (are_all_there) *last = {o->in_row, o->prefix, begin, u->cut, o->prefix + s->at.payload + s->size};
}

// What a network card does for a frame whose checksum its sender left to it. Once for an in row,
// however many remotes it goes to.
static int complete_checksum(const batch *b, int in_row, virtio_net_hdr *vnet) {
  int32_t offset = load(b->columns + layout::IN_OFFSET + in_row);
  int32_t length = load(b->columns + layout::IN_LENGTH + in_row);
  if (!in_slab(offset, length)) return -EINVAL;
  int error = checksum_complete(b->slab + offset, static_cast<size_t>(length), vnet->csum_start,
                                vnet->csum_offset);
  if (error == 0) vnet->flags &= static_cast<uint8_t>(~layout::VNET_NEEDS_CSUM);
  return error;
}

// order[at], of rows up to order[end - 1]. Returns 0 or -errno.
static int add_row(udp *u, const batch *b, int at, int end) {
  int row = u->order[at];
  outgoing o;
  int error = read_row(u, b, row, &o);
  if (error < 0) return error;
  if (o.is_super) {
    if (at >= u->run_end) measure_run(u, b, &o, at, end);
    add_segments(u, b, &o);
    return 0;
  }
  virtio_net_hdr *vnet = vnet_of(b, o.in_row);
  if ((vnet->flags & layout::VNET_NEEDS_CSUM) != 0) {
    error = complete_checksum(b, o.in_row, vnet);
    if (error < 0) return error;
  }
  datagram d = o.common;
  make_room(u, b, &d, 0);
  d.begin = b->slab + o.offset;
  d.most = TRAIN_ROWS;
  add_datagram(u, &d);
  return 0;
}

int udp_send(udp *u, const batch *b, int count) {
  int begin[MAX_FAN + 1], sequence[MAX_FAN];
  int64_t bytes[MAX_FAN] = {};
  int sent = sort_rows(u, b, count, begin, bytes);
  // A stream's quarter of a megabyte takes the kernel a third of a millisecond: what is little leaves before it.
  std::iota(sequence, sequence + u->fan, 0);
  std::sort(sequence, sequence + u->fan, [&bytes](int one, int other) { return bytes[one] < bytes[other]; });
  start_over(u);
  u->last.row = -1;
  for (int i = 0; i < u->fan; i++) {
    int s = sequence[i];
    u->out_fd = u->fan_fd[s];
    u->run_end = begin[s];
    for (int at = begin[s]; at < begin[s + 1]; at++) {
      int32_t *result = b->columns + layout::OUT_ERROR + u->order[at];
      *result = 0;
      int error = add_row(u, b, at, begin[s + 1]);  // which may send what it has gathered, and set the result
      if (error < 0) *result = -error;
    }
    if (u->messages > 0) flush(u, b);
  }
  for (int i = 0; i < begin[u->fan]; i++) {
    if (load(b->columns + layout::OUT_ERROR + u->order[i]) == 0) sent++;
  }
  if (u->flows != nullptr && count == 1 && sent == 1) flows_learn_encap(u->flows, u, b);
  return sent;
}

bool udp_send_one(udp *u, int32_t remote, int32_t hash, int32_t tos, uint8_t *payload, int32_t length) {
  const int32_t *words = words_of(u, remote);  // another thread may have written OUT_REMOTE since it was sent to
  if (words == nullptr || load(words + layout::REMOTE_PATH_MTU) != 0) return false;
  udp_name name;
  iovec part = {payload, static_cast<size_t>(length)};
  train one = {};
  one.datagrams = 1;
  one.tos = tos;
  msghdr header = {};
  header.msg_name = &name;
  set_name(u, words, &name, &header.msg_namelen);
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  set_control(u, &one, &header);
  u->out_fd = u->fan_fd[choose(u, hash)];
  u->narrow = false;
  int error = send_alone(u, &header, remote);
  if (u->narrow) allow_fragments(u, false);
  return error == 0;
}
