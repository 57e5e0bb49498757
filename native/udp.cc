#include "udp.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <netinet/udp.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "pace.h"

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

// Errors of single datagrams: what the path carries, and what ICMP tells (udp_errors.cc). They wait in
// the receive buffer, which nothing else gets into, and a page each is what some drivers charge.
static int ask_for_errors(const udp *u, int fd) {
  set_option(fd, SOL_SOCKET, SO_RCVBUF, 64 * 1024);
  return u->family == 4 ? set_option(fd, IPPROTO_IP, IP_RECVERR, 1)
                        : set_option(fd, IPPROTO_IPV6, IPV6_RECVERR, 1);
}

static int drop_all(int fd) {
  sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
  sock_fprog program = {1, &nothing};
  if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0) return -errno;
  return 0;
}

int udp_set_discovery(const udp *u, int fd, int how) {
  return u->family == 4 ? set_option(fd, IPPROTO_IP, IP_MTU_DISCOVER, how)
                        : set_option(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, how);
}

static int open_socket(const udp *u, const char **syscall) {
  *syscall = "socket";
  int domain = u->family == 4 ? AF_INET : AF_INET6;
  int fd = socket(domain, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  *syscall = "setsockopt";
  int error = udp_set_discovery(u, fd, u->discovery);
  if (error == 0 && u->family == 6) error = set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
  if (error == 0 && u->family == 6) error = set_option(fd, IPPROTO_UDP, UDP_NO_CHECK6_RX, 1);
  if (error == 0) return fd;
  close(fd);
  return error;
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

// EADDRNOTAVAIL if it is bound to something else, or no such socket.
static int adopt(const udp *u, const udp_name *wanted, socklen_t length, const char **syscall) {
  int fd = u->fd;
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  fcntl(fd, F_SETFL, O_NONBLOCK);
  udp_name found = {};
  socklen_t found_length = sizeof found;
  int type = 0;
  socklen_t type_length = sizeof type;
  *syscall = "getsockname";
  if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_length) < 0) return -errno;
  if (getsockname(fd, &found.any, &found_length) < 0) return -errno;
  bool same = found_length == length && found.any.sa_family == wanted->any.sa_family &&
              found.v4.sin_port == wanted->v4.sin_port;
  same = same && (u->family == 4 ? found.v4.sin_addr.s_addr == wanted->v4.sin_addr.s_addr
                                 : memcmp(&found.v6.sin6_addr, &wanted->v6.sin6_addr, 16) == 0);
  // A link-local one is bound to its interface, which may have been made anew.
  bool near = u->family == 6 && IN6_IS_ADDR_LINKLOCAL(&wanted->v6.sin6_addr);
  same = same && (!near || found.v6.sin6_scope_id == wanted->v6.sin6_scope_id);
  return same && type == SOCK_DGRAM ? 0 : -EADDRNOTAVAIL;
}

static int open_receiver(udp *u, const udp_options *options, udp_name *name, socklen_t length,
                         const char **syscall) {
  set_port(name, options->port);
  if (options->fd >= 0) {
    int error = adopt(u, name, length, syscall);
    if (error < 0) return error;
  } else {
    u->fd = open_socket(u, syscall);
    if (u->fd < 0) return u->fd;
  }
  // It never sends, so what it is told of a path is made up.
  udp_set_discovery(u, u->fd, IP_PMTUDISC_OMIT);
  set_buffer(u->fd, SO_RCVBUFFORCE, SO_RCVBUF, options->receive_buffer);
  if (u->family == 4) set_option(u->fd, IPPROTO_IP, IP_RECVTOS, 1);
  else set_option(u->fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
  // Linux 5.0. Trains need the room of the longest; without, many short slots fit into the slab. One that was kept may
  // have been asked for them.
  u->coalesces = set_option(u->fd, IPPROTO_UDP, UDP_GRO, options->coalesce) == 0 && options->coalesce;
  prepare_slots(u, u->coalesces ? MAX_SLOT : options->slot_bytes);
  if (options->fd >= 0) {
    u->dropped_before = udp_drops(u);
    return 0;
  }
  // The first of those that share the port binds it alone, so that a stranger's is found, and then
  // opens it for the others; a flow stays with its socket, by the hash of its outer addresses and ports.
  *syscall = "setsockopt";
  int error = options->sharer > 0 ? set_option(u->fd, SOL_SOCKET, SO_REUSEPORT, 1) : 0;
  if (error < 0) return error;
  *syscall = "bind";
  if (bind(u->fd, &name->any, length) < 0) return -errno;
  *syscall = "setsockopt";
  return options->sharer == 0 ? set_option(u->fd, SOL_SOCKET, SO_REUSEPORT, 1) : 0;
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
      if (error == 0) error = ask_for_errors(u, fd);
      if (error < 0) return close(fd), error;
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
  for (int i = 0; i < OUT_MESSAGES; i++) {
    u->out[i].msg_hdr.msg_name = &u->out_name[i];
  }
}

int udp_open(udp *u, const udp_options *options, const char **syscall) {
  memset(u, 0, offsetof(udp, out_cut));
  u->family = options->family;
  u->remotes = options->remotes;
  u->discovery = options->whole ? WHOLE : fragmented(u->family);
  u->fd = options->fd;  // ours from now on, whatever comes of it
  u->segments = options->segment;
  prepare_messages(u);

  udp_name name;
  socklen_t length;
  *syscall = "inet_pton";
  int error = parse_address(u, options->address, &name, &length);
  if (error == 0) error = open_receiver(u, options, &name, length, syscall);
  if (error == 0) error = open_fan(u, options, &name, length, syscall);
  if (error < 0) udp_close(u);
  else pace_watch(u->fd);
  return error;
}

void udp_close(udp *u) {
  if (u->fd >= 0) {
    pace_unwatch(u->fd);
    close(u->fd);
  }
  u->fd = -1;
  if (u->flows != nullptr) {
    flows_forget(u->flows);
    u->flows->underlays--;
    u->flows = nullptr;
  }
  if (u->second != nullptr) flood_close(u->second);
  u->second = nullptr;
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

// UDP_GRO delivers a train of datagrams as one, and their length in a control message; all of them
// have the same TOS (inet_gro_receive, ipv6_gro_receive).
static void read_control(const msghdr *header, int32_t *segment, int32_t *tos) {
  msghdr *messages = const_cast<msghdr *>(header);  // CMSG_NXTHDR wants one, and changes nothing
  for (cmsghdr *c = CMSG_FIRSTHDR(messages); c != nullptr; c = CMSG_NXTHDR(messages, c)) {
    int value = 0;
    if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
      memcpy(&value, CMSG_DATA(c), sizeof value);
      if (value > 0) *segment = value;
    } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
      *tos = *CMSG_DATA(c);
    } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) {
      memcpy(&value, CMSG_DATA(c), sizeof value);
      *tos = value;
    }
  }
}

void store_address(const udp *u, const udp_name *name, int32_t *words) {
  if (u->family == 6) {
    memcpy(words, &name->v6.sin6_addr, 16);
    return;
  }
  static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  memcpy(words, mapped, sizeof mapped);
  memcpy(words + 3, &name->v4.sin_addr, 4);
}

// A slot is a row. One of a train has room for any datagram; in a shorter one the kernel has cut what is longer.
static void store_row(const udp *u, const batch *b, int row) {
  const mmsghdr *message = &u->in[row];
  int32_t length = static_cast<int32_t>(message->msg_len);
  int32_t segment = length, tos = 0;
  read_control(&message->msg_hdr, &segment, &tos);
  bool cut = (message->msg_hdr.msg_flags & MSG_TRUNC) != 0;
  b->columns[layout::IN_OFFSET + row] = row * u->stride + layout::HEADROOM - 8;
  b->columns[layout::IN_LENGTH + row] = length;
  b->columns[layout::IN_SEGMENT + row] = segment;
  b->columns[layout::IN_FLAGS + row] = cut ? layout::TRUNCATED : 0;
  b->columns[layout::IN_TOS + row] = tos;
  store_address(u, &u->in_name[row], b->columns + layout::IN_ADDRESS + row * layout::ADDRESS_WORDS);
}

int udp_receive_one(const udp *u, held *h, uint8_t *rest) {
  int here = std::min(u->slot_bytes, HELD_BYTES);
  iovec parts[2] = {{h->bytes + layout::HEADROOM - 8, static_cast<size_t>(here)},
                    {rest, static_cast<size_t>(u->slot_bytes - here)}};
  udp_name name;
  alignas(cmsghdr) uint8_t control[sizeof u->in_control[0]];
  msghdr header = {};
  header.msg_name = &name;
  header.msg_namelen = sizeof name;
  header.msg_iov = parts;
  header.msg_iovlen = 2;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  ssize_t n = recvmsg(u->fd, &header, MSG_DONTWAIT);
  if (n < 0) return errno == EAGAIN || errno == EINTR ? 0 : -errno;
  h->length = h->segment = static_cast<int32_t>(n);
  h->tos = 0;
  h->truncated = (header.msg_flags & MSG_TRUNC) != 0;
  read_control(&header, &h->segment, &h->tos);
  store_address(u, &name, h->address);
  return 1;
}

int udp_receive(udp *u, const batch *b) {
  if (u->flows != nullptr) {
    int rows = flows_take_datagrams(u->flows, b);
    if (rows > 0) return rows;
  }
  pace_rest();
  pace_before_receive(u->fd);
  if (u->slab != b->slab) point_to(u, b->slab);
  int rows = recvmmsg(u->fd, u->in, static_cast<unsigned>(u->slots), MSG_DONTWAIT, nullptr);
  if (rows < 0 && errno == EINTR) return 0;
  if (rows < 0 && errno != EAGAIN) return -errno;
  if (rows <= 0) {
    // A socket that delivers nothing is asked in turn with one that does: that it is empty says nothing.
    if (u->delivered) pace_socket_empty(u->fd);
    u->delivered = false;
    return 0;
  }
  pace_carried(DECAP, 0, 0);
  u->delivered = true;
  for (int row = 0; row < rows; row++) {
    store_row(u, b, row);
    reset_message(u, row);
  }
  return rows;
}

uint32_t udp_drops(const udp *u) {
  uint32_t memory[SK_MEMINFO_VARS] = {};
  socklen_t length = sizeof memory;
  if (getsockopt(u->fd, SOL_SOCKET, SO_MEMINFO, memory, &length) < 0) return 0;
  return memory[SK_MEMINFO_DROPS] - u->dropped_before;
}
