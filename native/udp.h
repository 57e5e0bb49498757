// UDP over one address family: a socket that receives, and a fan of sockets that send.
//
// A socket has one source port, but RFC 7348 wants the outer source port to follow the inner flow.
// So there are several sending sockets, each on a port of its own, and the hash of the flow chooses
// one. They are not connected, and a filter drops whatever is sent to them: only the receiving
// socket queues.

#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include "aligned.h"
#include "flood.h"
#include "flows.h"
#include "layout.h"

constexpr int MAX_FAN = 64;
constexpr int MAX_SLOT = 65536;

struct udp_options {
  int family;           // 4 or 6
  const char *address;  // local, as text; an IPv6 link-local one with its %interface
  int port;
  int fd;  // a socket that receives on them already, opened before in the same way; or -1
  int sharer;  // -1: nobody else may receive on the port; 0: first of those that do; above: one more
  int source_port_low, source_port_high;
  int fan;         // sending sockets wanted; fewer if the range has fewer free ports
  int slot_bytes;  // longest datagram that is received whole where no trains are
  int receive_buffer, send_buffer;
  bool whole;              // whether datagrams may not be fragmented on the way
  bool segment, coalesce;  // whether trains leave as one message (UDP_SEGMENT), arrive as one (UDP_GRO)
  int32_t *remotes;        // written to: what their paths carry, and who refused datagrams
};

union udp_name {
  sockaddr any;
  sockaddr_in v4;
  sockaddr_in6 v6;
};

// Datagrams to one remote that leave in one message: the kernel cuts it into `segment` bytes each.
struct train {
  int32_t remote;
  int32_t first;    // the place of its first datagram in out_row
  int32_t segment;  // the length of all but the last, which may be shorter
  int32_t bytes;
  int32_t datagrams, most;
  bool ended;  // by a shorter one
  int32_t tos;
  alignas(cmsghdr) uint8_t control[CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(int))];
};

// The super-frame whose segments were written last, in `out_cut`.
struct last_cut {
  int32_t row;  // in which it came, or -1
  int32_t prefix, begin, end;
  int32_t step;  // bytes of each but the last
};

constexpr int OUT_DATAGRAMS = layout::OUT_ROWS;
constexpr int OUT_MESSAGES = OUT_DATAGRAMS;
// A turn's bytes and a frame, with the headers of segments of 1,400 bytes. What is more leaves in several calls.
constexpr int OUT_CUT = 384 * 1024;

struct udp {
  int family;
  uint32_t scope;  // interface index of link-local addresses
  int32_t *remotes;
  int fd;
  int fan;
  int fan_fd[MAX_FAN];
  uint32_t refusals;
  uint32_t dropped_before;  // by the socket, until it was adopted

  int slot_bytes, stride, slots;
  const uint8_t *slab;  // what `in` points to
  bool delivered;       // since it was last empty
  mmsghdr in[layout::IN_ROWS];
  iovec in_part[layout::IN_ROWS];
  udp_name in_name[layout::IN_ROWS];
  // The length of a train's datagrams, and the TOS.
  alignas(cmsghdr) uint8_t in_control[layout::IN_ROWS][2 * CMSG_SPACE(sizeof(int))];

  uint8_t choice[layout::OUT_ROWS];
  uint16_t order[layout::OUT_ROWS];
  int discovery;  // of the sending sockets: WHOLE, or by their family one of the others
  bool segments;  // the kernel splits trains (UDP_SEGMENT), until it refuses one
  bool coalesces;

  // What the next sendmmsg takes, by the socket of descriptor `out_fd`.
  int out_fd, messages, datagrams, parts, cut;
  uint32_t told_mtu;  // by ICMP, of the path to `told_of`, when errors were last asked for; 0: none
  int32_t told_of[layout::ADDRESS_WORDS];
  bool narrow;  // it may be fragmented, as it is for narrow paths
  last_cut last;  // its out rows are all as long as the first
  int run_end, run_most;  // super-frames that share trains: the place in `order` behind them, datagrams of a train
  flow_table *flows;    // or null
  flood *second;        // likewise, until a frame goes to many remotes
  mmsghdr out[OUT_MESSAGES];
  udp_name out_name[OUT_MESSAGES];
  train out_train[OUT_MESSAGES];
  // Datagrams, in the order of the messages they belong to: the rows they are of, and where they are. Those of a message
  // that lie one behind the other are one part.
  uint16_t out_row[OUT_DATAGRAMS];
  iovec out_part[OUT_DATAGRAMS];
  // Segments of super-frames, with all their headers; behind all else, for udp_open does not touch it.
  aligned_bytes<OUT_CUT> out_cut;
};

// Returns 0, or -errno and what failed in `*syscall`; then nothing is left open.
int udp_open(udp *u, const udp_options *options, const char **syscall);
void udp_close(udp *u);

// Fills in rows, after a moment if the thread lets datagrams gather (pace.h). Returns how many, 0 if nothing waits, or
// -errno.
int udp_receive(udp *u, const batch *b);

// Sends those of the out rows 0 to count - 1 whose remote is of this family, sets the error of each
// of them, and leaves the others alone. Returns how many were sent.
int udp_send(udp *u, const batch *b, int count);

// Of a single datagram or train, for flows.h, cut where a slot would end: what does not fit in there goes to `rest`.
// Returns 1, 0 if nothing waits, or -errno.
int udp_receive_one(const udp *u, held *h, uint8_t *rest);

// False if it did not leave, or its path may not carry it.
bool udp_send_one(udp *u, int32_t remote, int32_t hash, int32_t tos, uint8_t *payload, int32_t length);

// How datagrams leave: never fragmented (RFC 7348, section 4.3), so that what does not fit is EMSGSIZE ...
constexpr int WHOLE = IP_PMTUDISC_DO;
static_assert(WHOLE == IPV6_PMTUDISC_DO);
// ... or fragmented where they are too long: by routers, or by the kernel for an interface of ours. What the route is
// said to carry is for IPv6 alone, whose routers do not.
inline int fragmented(int family) { return family == 4 ? IP_PMTUDISC_OMIT : IPV6_PMTUDISC_DONT; }

// Returns 0 or -errno.
int udp_set_discovery(const udp *u, int fd, int how);

// Whether a send by `out_fd` to `remote` failed because of datagrams before it, and is to be tried
// again. If it is the datagram that the path does not carry, the remote's row says what it does carry.
bool udp_was_icmp(udp *u, int32_t remote, int error);

// Takes what sends by `out_fd` have left there that failed without being asked why (flood.h), or the next one that fails
// would have its path's MTU from theirs.
void udp_take_errors(udp *u);

// A datagram of so many bytes that was tried again left: if an ICMP message said that it would not fit, its path's row
// says so too.
void udp_left_again(udp *u, int32_t remote, int32_t payload);

// The address as REMOTE_ADDRESS and IN_ADDRESS have it.
void store_address(const udp *u, const udp_name *name, int32_t *words);

// ICMP errors that came back about datagrams that had been sent, but for those about their size.
uint32_t udp_refusals(udp *u);

// Datagrams that the receiving socket dropped since it was opened here, most of them for want of room in its buffer; modulo
// 2^32. What one that was kept dropped while nobody had it open is not among them.
uint32_t udp_drops(const udp *u);
