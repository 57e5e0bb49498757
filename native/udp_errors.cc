// What the kernel says of datagrams afterwards: the error queues of the sending sockets (IP_RECVERR).
//
// Two kinds of entries matter. A local one is the kernel's own refusal, EMSGSIZE: it tells the MTU of
// the path, which is written to the remote's row. Those that ICMP brought are counted, in all and by
// remote: a host that answers so does not listen, or is not there. What an ICMP
// message says about an MTU is not believed: the kernel has checked it, keeps it above its floor, and
// tells it with the next datagram that does not fit, as a local entry. But for a route of IPv4 whose
// MTU is locked (ip-route(8)) it keeps nothing, and sends on what is lost: a datagram was not to fit, and leaves.
//
// An ICMP error has a second effect (sock_alloc_send_pskb, net/core/sock.c): it is the result of the
// socket's next send, whatever that one sends and to whom. Nothing was sent then, and trying again
// sends it.

#include "udp.h"

#include <cerrno>
#include <cstring>
#include <ctime>  // which the next one forgets

#include <linux/errqueue.h>

// More than the receive buffer holds; what comes meanwhile waits for the next time.
static constexpr int MOST = 128;

static const sock_extended_err *error_of(msghdr *message) {
  for (cmsghdr *c = CMSG_FIRSTHDR(message); c != nullptr; c = CMSG_NXTHDR(message, c)) {
    if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) ||
        (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR)) {
      return reinterpret_cast<const sock_extended_err *>(CMSG_DATA(c));
    }
  }
  return nullptr;
}

// Rows are in use from 1 on without a gap; a search of all takes microseconds, and the kernel limits ICMP.
static void count_refusal(udp *u, const udp_name *to) {
  u->refusals++;
  int32_t address[layout::ADDRESS_WORDS];
  store_address(u, to, address);
  uint16_t port = ntohs(u->family == 6 ? to->v6.sin6_port : to->v4.sin_port);
  for (int remote = 1; remote < layout::REMOTE_ROWS; remote++) {
    const int32_t *row = u->remotes + remote * layout::REMOTE_WORDS;
    if (load(row + layout::REMOTE_FAMILY) == 0) return;
    if (load(row + layout::REMOTE_PORT) != port) continue;
    if (memcmp(row + layout::REMOTE_ADDRESS, address, sizeof address) != 0) continue;
    __atomic_fetch_add(u->remotes + layout::REMOTE_REFUSED + remote, 1, __ATOMIC_RELAXED);
    return;
  }
}

// Empties the queue, and with it takes away the error that waits for the next send. Returns the MTU
// that the last local entry tells, 0 if there was none.
static uint32_t drain(udp *u, int fd) {
  u->told_mtu = 0;
  alignas(cmsghdr) uint8_t control[CMSG_SPACE(sizeof(sock_extended_err) + sizeof(sockaddr_in6))];
  uint32_t mtu = 0;
  for (int i = 0; i < MOST; i++) {
    udp_name to = {};
    msghdr message = {};
    message.msg_name = &to;  // of the datagram that the error is about
    message.msg_namelen = sizeof to;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) break;
    const sock_extended_err *e = error_of(&message);
    if (e == nullptr) continue;
    if (e->ee_origin == SO_EE_ORIGIN_LOCAL) {
      if (e->ee_errno == EMSGSIZE) mtu = e->ee_info;
    } else if (e->ee_errno == EMSGSIZE) {
      u->told_mtu = e->ee_info;
      store_address(u, &to, u->told_of);
    } else {
      count_refusal(u, &to);
    }
  }
  return mtu;
}

// What icmp_err_convert (net/ipv4/icmp.c) and icmpv6_err_convert (net/ipv6/icmp.c) can yield.
static bool may_be_icmp(int error) {
  switch (error) {
    case EMSGSIZE:
    case ECONNREFUSED:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EHOSTDOWN:
    case ENONET:
    case ENOPROTOOPT:
    case EOPNOTSUPP:
    case EPROTO:
    case EACCES:
      return true;
  }
  return false;
}

static void learn(udp *u, int32_t remote, uint32_t mtu) {
  int32_t *row = u->remotes + remote * layout::REMOTE_WORDS;
  __atomic_store_n(row + layout::REMOTE_LEARNED_AT, 0, __ATOMIC_RELAXED);
  __atomic_store_n(row + layout::REMOTE_PATH_MTU, static_cast<int32_t>(mtu), __ATOMIC_RELEASE);
}

bool udp_was_icmp(udp *u, int32_t remote, int error) {
  if (!may_be_icmp(error)) return false;
  uint32_t mtu = drain(u, u->out_fd);
  if (error != EMSGSIZE || mtu == 0) return true;
  // The queue was empty after every failure before, so this is about the datagram that just failed.
  learn(u, remote, mtu);
  return false;
}

void udp_take_errors(udp *u) { drain(u, u->out_fd); }

void udp_left_again(udp *u, int32_t remote, int32_t payload) {
  int32_t mtu = static_cast<int32_t>(u->told_mtu);
  if (u->family != 4 || u->discovery != WHOLE || u->narrow || mtu < 68) return;  // RFC 791's least
  if (payload + 20 + 8 <= mtu) return;
  const int32_t *row = u->remotes + remote * layout::REMOTE_WORDS;
  if (memcmp(row + layout::REMOTE_ADDRESS, u->told_of, sizeof u->told_of) == 0) learn(u, remote, u->told_mtu);
}

uint32_t udp_refusals(udp *u) {
  for (int s = 0; s < u->fan; s++) drain(u, u->fan_fd[s]);
  return u->refusals;
}
