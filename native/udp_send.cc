// Sending: which socket a datagram leaves by, and with which others.
//
// Neighbours that go from one socket to one remote and are equally long (the last may be shorter) leave
// as a train: one message that carries their length, cut into datagrams by the network card, or by the
// kernel just before it (UDP_SEGMENT). So a train crosses the stack once. Only the message before is
// asked, hence the order within a socket, and with it within a flow, is that of the rows.
//
// What a train is refused for is not told by row: its datagrams are then sent one by one, and each gets
// its own error. If all of them leave, it was the cutting that the device (EIO) or the kernel (EINVAL)
// cannot do, and no more trains are made.

#include <netinet/udp.h>

#include <cerrno>
#include <cstring>

#include "checksum.h"
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

static const int32_t *remote_of(const udp *u, const batch *b, int row) {
  int32_t remote = load(b->columns + layout::OUT_REMOTE + row);
  if (remote <= 0 || remote >= layout::REMOTE_ROWS) return nullptr;
  const int32_t *words = u->remotes + remote * layout::REMOTE_WORDS;
  return load(words + layout::REMOTE_FAMILY) == u->family ? words : nullptr;
}

// Groups the rows by the socket they go to, in their order (a counting sort): those of socket s are
// order[begin[s]] to order[begin[s + 1] - 1].
static void sort_rows(udp *u, const batch *b, int count, int *begin) {
  int next[MAX_FAN + 1] = {};
  for (int row = 0; row < count; row++) {
    u->choice[row] = NO_SOCKET;
    if (remote_of(u, b, row) == nullptr) continue;
    int s = choose(u, load(b->columns + layout::OUT_HASH + row));
    u->choice[row] = static_cast<uint8_t>(s);
    next[s + 1]++;
  }
  for (int s = 0; s < u->fan; s++) next[s + 1] += next[s];
  memcpy(begin, next, sizeof next);
  for (int row = 0; row < count; row++) {
    if (u->choice[row] != NO_SOCKET) u->order[next[u->choice[row]]++] = static_cast<uint16_t>(row);
  }
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

// What a network card does for a frame whose checksum its sender left to it. Once for an in row,
// however many remotes it goes to.
static int complete_row(const batch *b, int out_row) {
  int32_t row = load(b->columns + layout::OUT_ROW + out_row);
  if (row < 0 || row >= layout::IN_ROWS) return EINVAL;
  virtio_net_hdr *vnet = vnet_of(b, row);
  if ((vnet->flags & layout::VNET_NEEDS_CSUM) == 0) return 0;
  int32_t offset = load(b->columns + layout::IN_OFFSET + row);
  int32_t length = load(b->columns + layout::IN_LENGTH + row);
  if (!in_slab(offset, length)) return EINVAL;
  int error = checksum_complete(b->slab + offset, static_cast<size_t>(length), vnet->csum_start,
                                vnet->csum_offset);
  if (error < 0) return -error;
  vnet->flags &= static_cast<uint8_t>(~layout::VNET_NEEDS_CSUM);
  return 0;
}

// Whether a datagram may ride with the message before it: same remote, same length or a shorter one
// at the end. Order within a socket stays as it is.
static bool joins(const udp *u, int message, int32_t remote, int32_t length) {
  const train *t = &u->out_train[message];
  return u->segments && !t->ended && t->remote == remote && length > 0 && length <= t->segment &&
         t->bytes + length <= TRAIN_BYTES && u->out[message].msg_hdr.msg_iovlen < TRAIN_ROWS;
}

// Puts a row into a message, the last one or a new one. Returns its error, or 0.
static int load_row(udp *u, const batch *b, int row, int part, int *messages) {
  int32_t offset = load(b->columns + layout::OUT_OFFSET + row);
  int32_t length = load(b->columns + layout::OUT_LENGTH + row);
  int32_t remote = load(b->columns + layout::OUT_REMOTE + row);
  const int32_t *words = remote_of(u, b, row);
  if (words == nullptr || !in_slab(offset, length)) return EINVAL;
  int error = complete_row(b, row);
  if (error != 0) return error;
  u->out_part[part] = {b->slab + offset, static_cast<size_t>(length)};
  u->out_row[part] = static_cast<uint16_t>(row);
  int last = *messages - 1;
  if (last >= 0 && joins(u, last, remote, length)) {
    train *t = &u->out_train[last];
    msghdr *header = &u->out[last].msg_hdr;
    t->bytes += length;
    t->ended = length < t->segment;
    uint16_t segment = static_cast<uint16_t>(t->segment);
    memcpy(CMSG_DATA(reinterpret_cast<cmsghdr *>(t->control)), &segment, sizeof segment);
    header->msg_iovlen++;
    header->msg_control = t->control;
    header->msg_controllen = sizeof t->control;
    return 0;
  }
  int message = (*messages)++;
  msghdr *header = &u->out[message].msg_hdr;
  set_name(u, words, &u->out_name[message], &header->msg_namelen);
  header->msg_iov = &u->out_part[part];
  header->msg_iovlen = 1;
  header->msg_control = nullptr;
  header->msg_controllen = 0;
  u->out_train[message].remote = remote;
  u->out_train[message].segment = length;
  u->out_train[message].bytes = length;
  u->out_train[message].ended = false;
  return 0;
}

static int set_errors(udp *u, const batch *b, const msghdr *header, int error) {
  int first = static_cast<int>(header->msg_iov - u->out_part);
  int rows = static_cast<int>(header->msg_iovlen);
  for (int i = first; i < first + rows; i++) b->columns[layout::OUT_ERROR + u->out_row[i]] = error;
  return rows;
}

// One by one, so that each row has an error of its own.
static int send_apart(udp *u, const batch *b, int fd, const msghdr *together) {
  int sent = 0;
  for (size_t i = 0; i < together->msg_iovlen; i++) {
    msghdr alone = *together;
    alone.msg_iov = together->msg_iov + i;
    alone.msg_iovlen = 1;
    alone.msg_control = nullptr;
    alone.msg_controllen = 0;
    int error = sendmsg(fd, &alone, MSG_DONTWAIT) < 0 ? errno : 0;
    set_errors(u, b, &alone, error);
    if (error == 0) sent++;
  }
  return sent;
}

// Sends messages 0 to count - 1 and returns how many datagrams left. sendmmsg(2) stops before the one
// that fails and tells why only if that is the first, so it is called again from there: that one's error
// is its rows', the next ones get their own chance. A full socket stays full: then all the rest fail.
static int send_messages(udp *u, const batch *b, int fd, int count) {
  int sent = 0;
  for (int message = 0; message < count;) {
    int n = sendmmsg(fd, u->out + message, static_cast<unsigned>(count - message), MSG_DONTWAIT);
    if (n > 0) {
      for (int end = message + n; message < end; message++) {
        sent += set_errors(u, b, &u->out[message].msg_hdr, 0);
      }
      continue;
    }
    int error = errno;
    const msghdr *header = &u->out[message].msg_hdr;
    if (error == EAGAIN) {
      while (message < count) set_errors(u, b, &u->out[message++].msg_hdr, error);
    } else if (header->msg_iovlen > 1) {
      int apart = send_apart(u, b, fd, header);
      bool refused = (error == EIO || error == EINVAL) && apart == static_cast<int>(header->msg_iovlen);
      if (refused) u->segments = false;
      sent += apart;
      message++;
    } else {
      set_errors(u, b, header, error);
      message++;
    }
  }
  return sent;
}

int udp_send(udp *u, const batch *b, int count) {
  int begin[MAX_FAN + 1];
  sort_rows(u, b, count, begin);
  int sent = 0;
  for (int s = 0; s < u->fan; s++) {
    int messages = 0;
    int parts = 0;
    for (int i = begin[s]; i < begin[s + 1]; i++) {
      int row = u->order[i];
      int error = load_row(u, b, row, parts, &messages);
      if (error == 0) {
        parts++;
      } else {
        b->columns[layout::OUT_ERROR + row] = error;
      }
    }
    if (messages > 0) sent += send_messages(u, b, u->fan_fd[s], messages);
  }
  return sent;
}
