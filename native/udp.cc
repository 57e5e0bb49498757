#include "udp.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <netinet/udp.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "checksum.h"

static constexpr uint8_t NO_SOCKET = 255;
static_assert(MAX_FAN < NO_SOCKET, "choice is a byte");

// ---- opening

static int parse_address(udp *u, const char *text, udp_name *name, socklen_t *length) {
  memset(name, 0, sizeof *name);
  if (u->family == 4) {
    name->v4.sin_family = AF_INET;
    *length = sizeof name->v4;
    return inet_pton(AF_INET, text, &name->v4.sin_addr) == 1 ? 0 : -EINVAL;
  }
  char address[INET6_ADDRSTRLEN] = {};
  size_t before_zone = strcspn(text, "%");
  if (before_zone >= sizeof address) return -EINVAL;
  memcpy(address, text, before_zone);
  name->v6.sin6_family = AF_INET6;
  *length = sizeof name->v6;
  if (inet_pton(AF_INET6, address, &name->v6.sin6_addr) != 1) return -EINVAL;
  if (text[before_zone] == '%') {
    u->scope = if_nametoindex(text + before_zone + 1);
    if (u->scope == 0) return -ENODEV;
    name->v6.sin6_scope_id = u->scope;
  }
  return 0;
}

static void set_port(udp_name *name, int port) {
  // sin_port and sin6_port are the same field (RFC 3493, section 3.4 keeps it so on purpose).
  static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port), "");
  name->v4.sin_port = htons(static_cast<uint16_t>(port));
}

static int set_option(int fd, int level, int option, int value) {
  return setsockopt(fd, level, option, &value, sizeof value) < 0 ? -errno : 0;
}

// With CAP_NET_ADMIN beyond net.core.rmem_max; without, as much of it as the host allows.
static void set_buffer(int fd, int forced, int polite, int bytes) {
  if (set_option(fd, SOL_SOCKET, forced, bytes) < 0) set_option(fd, SOL_SOCKET, polite, bytes);
}

static int drop_all(int fd) {
  sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
  sock_fprog program = {1, &nothing};
  if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0) return -errno;
  return 0;
}

static int open_socket(const udp *u, const char **syscall) {
  *syscall = "socket";
  int domain = u->family == 4 ? AF_INET : AF_INET6;
  int fd = socket(domain, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  *syscall = "setsockopt";
  // Path MTU discovery also means that nothing is ever fragmented (RFC 7348, section 4.3): what does
  // not fit is EMSGSIZE.
  int error;
  if (u->family == 4) {
    error = set_option(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO);
  } else {
    error = set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    if (error == 0) error = set_option(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO);
    if (error == 0) error = set_option(fd, IPPROTO_UDP, UDP_NO_CHECK6_RX, 1);
  }
  if (error == 0) return fd;
  close(fd);
  return error;
}

static int open_receiver(udp *u, const udp_options *options, udp_name *name, socklen_t length,
                         const char **syscall) {
  u->fd = open_socket(u, syscall);
  if (u->fd < 0) return u->fd;
  set_buffer(u->fd, SO_RCVBUFFORCE, SO_RCVBUF, options->receive_buffer);
  set_port(name, options->port);
  *syscall = "bind";
  return bind(u->fd, &name->any, length) < 0 ? -errno : 0;
}

// Takes free ports of the range, from a different one in each process onwards, so that VTEPs which
// share a host do not stumble over each other's.
static int open_fan(udp *u, const udp_options *options, udp_name *name, socklen_t length,
                    const char **syscall) {
  int ports = options->source_port_high - options->source_port_low + 1;
  int first = static_cast<int>(static_cast<uint32_t>(getpid()) * 0x9e3779b1u % ports);
  int fd = -1;
  for (int i = 0; i < ports && u->fan < options->fan; i++) {
    if (fd < 0) {
      fd = open_socket(u, syscall);
      if (fd < 0) return fd;
      int error = drop_all(fd);
      if (error < 0) return close(fd), error;
      set_option(fd, SOL_SOCKET, SO_RCVBUF, 0);
      set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, options->send_buffer);
    }
    set_port(name, options->source_port_low + (first + i) % ports);
    if (bind(fd, &name->any, length) == 0) {
      u->fan_fd[u->fan++] = fd;
      fd = -1;
    } else if (errno != EADDRINUSE && errno != EACCES) {
      break;
    }
  }
  int error = -errno;
  if (fd >= 0) close(fd);
  *syscall = "bind(source port)";
  return u->fan > 0 ? 0 : error;
}

static void prepare_slots(udp *u, int slot_bytes) {
  // The payload starts 2 bytes into its slot, so that the inner IP header is 8-byte aligned. An odd
  // number of cache lines from slot to slot spreads the headers over all sets of the cache.
  u->slot_bytes = slot_bytes;
  u->stride = (layout::HEADROOM + slot_bytes + 63) & ~63;
  if ((u->stride & 64) == 0) u->stride += 64;
  u->slots = layout::SLAB_BYTES / u->stride;
  if (u->slots > layout::IN_ROWS) u->slots = layout::IN_ROWS;
}

static void reset_message(udp *u, int row) {
  msghdr *header = &u->in[row].msg_hdr;
  header->msg_namelen = sizeof u->in_name[row];
  header->msg_controllen = sizeof u->in_control[row];
}

static void prepare_messages(udp *u) {
  for (int row = 0; row < layout::IN_ROWS; row++) {
    msghdr *header = &u->in[row].msg_hdr;
    header->msg_name = &u->in_name[row];
    header->msg_iov = &u->in_part[row];
    header->msg_iovlen = 1;
    header->msg_control = u->in_control[row];
    reset_message(u, row);
  }
  for (int i = 0; i < layout::OUT_ROWS; i++) {
    msghdr *header = &u->out[i].msg_hdr;
    header->msg_name = &u->out_name[i];
    header->msg_iov = &u->out_part[i];
    header->msg_iovlen = 1;
  }
}

int udp_open(udp *u, const udp_options *options, const char **syscall) {
  memset(u, 0, sizeof *u);
  u->family = options->family;
  u->remotes = options->remotes;
  u->fd = -1;
  prepare_slots(u, options->slot_bytes);
  prepare_messages(u);

  udp_name name;
  socklen_t length;
  *syscall = "inet_pton";
  int error = parse_address(u, options->address, &name, &length);
  if (error == 0) error = open_receiver(u, options, &name, length, syscall);
  if (error == 0) error = open_fan(u, options, &name, length, syscall);
  if (error < 0) udp_close(u);
  return error;
}

void udp_close(udp *u) {
  if (u->fd >= 0) close(u->fd);
  u->fd = -1;
  while (u->fan > 0) close(u->fan_fd[--u->fan]);
}

// ---- receiving

static void point_to(udp *u, uint8_t *slab) {
  for (int row = 0; row < u->slots; row++) {
    u->in_part[row].iov_base = slab + row * u->stride + layout::HEADROOM - 8;
    u->in_part[row].iov_len = static_cast<size_t>(u->slot_bytes);
  }
  u->slab = slab;
}

// UDP_GRO delivers a train of datagrams as one, and their length in a control message.
static int32_t segment_of(msghdr *header, int32_t length) {
  for (cmsghdr *c = CMSG_FIRSTHDR(header); c != nullptr; c = CMSG_NXTHDR(header, c)) {
    if (c->cmsg_level != IPPROTO_UDP || c->cmsg_type != UDP_GRO) continue;
    int segment;
    memcpy(&segment, CMSG_DATA(c), sizeof segment);
    return segment > 0 ? segment : length;
  }
  return length;
}

static void store_address(const udp *u, const udp_name *name, int32_t *words) {
  if (u->family == 6) {
    memcpy(words, &name->v6.sin6_addr, 16);
    return;
  }
  static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  memcpy(words, mapped, sizeof mapped);
  memcpy(words + 3, &name->v4.sin_addr, 4);
}

int udp_receive(udp *u, const batch *b) {
  if (u->slab != b->slab) point_to(u, b->slab);
  int rows = recvmmsg(u->fd, u->in, static_cast<unsigned>(u->slots), MSG_DONTWAIT, nullptr);
  if (rows < 0) return errno == EAGAIN || errno == EINTR ? 0 : -errno;
  for (int row = 0; row < rows; row++) {
    msghdr *header = &u->in[row].msg_hdr;
    int32_t length = static_cast<int32_t>(u->in[row].msg_len);
    b->columns[layout::IN_OFFSET + row] = row * u->stride + layout::HEADROOM - 8;
    b->columns[layout::IN_LENGTH + row] = length;
    b->columns[layout::IN_SEGMENT + row] = segment_of(header, length);
    b->columns[layout::IN_FLAGS + row] = header->msg_flags & MSG_TRUNC ? layout::TRUNCATED : 0;
    store_address(u, &u->in_name[row],
                  b->columns + layout::IN_ADDRESS + row * layout::ADDRESS_WORDS);
    reset_message(u, row);
  }
  return rows;
}

// ---- sending

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

static int set_message(udp *u, const batch *b, int row, int message) {
  int32_t offset = load(b->columns + layout::OUT_OFFSET + row);
  int32_t length = load(b->columns + layout::OUT_LENGTH + row);
  const int32_t *remote = remote_of(u, b, row);
  if (remote == nullptr || !in_slab(offset, length)) return EINVAL;
  int error = complete_row(b, row);
  if (error != 0) return error;
  set_name(u, remote, &u->out_name[message], &u->out[message].msg_hdr.msg_namelen);
  u->out_part[message].iov_base = b->slab + offset;
  u->out_part[message].iov_len = static_cast<size_t>(length);
  u->out_row[message] = static_cast<uint16_t>(row);
  return 0;
}

// Sends messages 0 to count - 1 and returns how many left. sendmmsg(2) stops before the one that
// fails and tells why only if that is the first, so it is called again from there: that one's error
// is its row's, the next ones get their own chance. A full socket stays full: then all the rest fail.
static int send_messages(udp *u, const batch *b, int fd, int count) {
  int32_t *errors = b->columns + layout::OUT_ERROR;
  int sent = 0;
  for (int message = 0; message < count;) {
    int n = sendmmsg(fd, u->out + message, static_cast<unsigned>(count - message), MSG_DONTWAIT);
    if (n > 0) {
      for (int end = message + n; message < end; message++) errors[u->out_row[message]] = 0;
      sent += n;
      continue;
    }
    int error = errno;
    int end = error == EAGAIN ? count : message + 1;
    while (message < end) errors[u->out_row[message++]] = error;
  }
  return sent;
}

int udp_send(udp *u, const batch *b, int count) {
  int begin[MAX_FAN + 1];
  sort_rows(u, b, count, begin);
  int sent = 0;
  for (int s = 0; s < u->fan; s++) {
    int messages = 0;
    for (int i = begin[s]; i < begin[s + 1]; i++) {
      int row = u->order[i];
      int error = set_message(u, b, row, messages);
      if (error == 0) {
        messages++;
      } else {
        b->columns[layout::OUT_ERROR + row] = error;
      }
    }
    if (messages > 0) sent += send_messages(u, b, u->fan_fd[s], messages);
  }
  return sent;
}

uint32_t udp_drops(const udp *u) {
  uint32_t memory[SK_MEMINFO_VARS] = {};
  socklen_t length = sizeof memory;
  if (getsockopt(u->fd, SOL_SOCKET, SO_MEMINFO, memory, &length) < 0) return 0;
  return memory[SK_MEMINFO_DROPS];
}
