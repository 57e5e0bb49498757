#include "steering.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>

// <linux/filter.h> of the kernel has names for instructions, but not for user space. A load from the
// packet takes it from register 6 to register 0, in host order; one beyond its end makes the program
// return 0.
enum : uint8_t { R0, R1, SUM = 7, AT = 8, PROTOCOL = 9, PACKET = 6 };

static constexpr bpf_insn at(uint8_t size, int offset) {
  return {static_cast<uint8_t>(BPF_LD | size | BPF_ABS), 0, 0, 0, offset};
}

static constexpr bpf_insn from_at(uint8_t size, int offset) {
  return {static_cast<uint8_t>(BPF_LD | size | BPF_IND), 0, AT, 0, offset};
}

static constexpr bpf_insn alu(uint8_t operation, uint8_t to, int value) {
  return {static_cast<uint8_t>(BPF_ALU | operation | BPF_K), to, 0, 0, value};
}

static constexpr bpf_insn alu_register(uint8_t operation, uint8_t to, uint8_t from) {
  return {static_cast<uint8_t>(BPF_ALU | operation | BPF_X), to, from, 0, 0};
}

static constexpr bpf_insn jump(uint8_t when, uint8_t reg, int value, int16_t over) {
  return {static_cast<uint8_t>(BPF_JMP | when | BPF_K), reg, 0, over, value};
}

// Multiplicative hashing: every word moves the upper half of the sum, of which the queue is made.
// No bit of a product depends on those above it, so before the last the upper half is mixed into the lower: whoever
// connects has an even source port (__inet_hash_connect in net/ipv4/inet_hashtables.c), and of two queues its lowest
// bit alone would choose.
static constexpr bpf_insn MIX_IN = alu_register(BPF_XOR, SUM, R0);
static constexpr bpf_insn MIX = alu(BPF_MUL, SUM, static_cast<int>(0x9e3779b1));

static constexpr bpf_insn BY_FLOW[] = {
    {BPF_ALU64 | BPF_MOV | BPF_X, PACKET, R1, 0, 0},
    alu(BPF_MOV, SUM, 0),
    alu(BPF_MOV, PROTOCOL, 0),
    alu(BPF_MOV, AT, ETH_HLEN),
    at(BPF_H, 12),
    jump(BPF_JEQ, R0, ETH_P_8021Q, 1),
    jump(BPF_JNE, R0, ETH_P_8021AD, 2),
    at(BPF_H, 16),
    alu(BPF_MOV, AT, ETH_HLEN + 4),
    jump(BPF_JEQ, R0, ETH_P_IP, 9),
    jump(BPF_JEQ, R0, ETH_P_IPV6, 23),
    // Anything else by its stations; ARP goes where ICMP does.
    jump(BPF_JNE, R0, ETH_P_ARP, 1),
    alu(BPF_MOV, PROTOCOL, IPPROTO_ICMP),
    at(BPF_W, 2), MIX_IN, MIX, at(BPF_W, 8), MIX_IN,
    jump(BPF_JA, 0, 0, 46),
    // IPv4. Fragments but the first have no ports, so none of them is looked at.
    from_at(BPF_W, 12), MIX_IN, MIX, from_at(BPF_W, 16), MIX_IN, MIX,
    from_at(BPF_H, 6),
    jump(BPF_JSET, R0, 0x3fff, 38),
    from_at(BPF_B, 9),
    alu_register(BPF_MOV, PROTOCOL, R0),
    from_at(BPF_B, 0),
    alu(BPF_AND, R0, 0x0f),
    alu(BPF_LSH, R0, 2),
    alu_register(BPF_ADD, AT, R0),
    jump(BPF_JA, 0, 0, 27),
    // IPv6.
    from_at(BPF_W, 8), MIX_IN, MIX, from_at(BPF_W, 12), MIX_IN, MIX,
    from_at(BPF_W, 16), MIX_IN, MIX, from_at(BPF_W, 20), MIX_IN, MIX,
    from_at(BPF_W, 24), MIX_IN, MIX, from_at(BPF_W, 28), MIX_IN, MIX,
    from_at(BPF_W, 32), MIX_IN, MIX, from_at(BPF_W, 36), MIX_IN, MIX,
    from_at(BPF_B, 6),
    alu_register(BPF_MOV, PROTOCOL, R0),
    alu(BPF_ADD, AT, 40),
    // Ports, but not of UDP: its fragments have none, and are to stay behind what was not fragmented. Network
    // cards spread it so too, unless told otherwise.
    jump(BPF_JEQ, PROTOCOL, IPPROTO_TCP, 1),
    jump(BPF_JNE, PROTOCOL, IPPROTO_SCTP, 2),
    from_at(BPF_W, 0), MIX_IN,
    alu_register(BPF_MOV, R0, SUM), alu(BPF_RSH, R0, 16), MIX_IN, MIX,
    alu(BPF_RSH, SUM, 16),
    alu_register(BPF_MOV, R0, SUM),
    jump(BPF_JEQ, PROTOCOL, IPPROTO_ICMP, 4),
    jump(BPF_JEQ, PROTOCOL, IPPROTO_ICMPV6, 3),
    // Of 65,536 queues, of which none is apart: the driver takes what it has of them.
    alu(BPF_MOD, R0, 1 << 16), alu(BPF_ADD, R0, 0),
    {BPF_JMP | BPF_EXIT, 0, 0, 0, 0},
    alu(BPF_MOD, R0, 1 << 16),
    {BPF_JMP | BPF_EXIT, 0, 0, 0, 0},
};

// What is different where some queues are apart, from the end.
static constexpr size_t LENGTH = sizeof BY_FLOW / sizeof *BY_FLOW;
static constexpr size_t FLOWS = LENGTH - 5, PAST = LENGTH - 4, APART = LENGTH - 2;
static_assert(BY_FLOW[FLOWS].code == BY_FLOW[APART].code && BY_FLOW[FLOWS].imm == 1 << 16 &&
              BY_FLOW[APART].imm == 1 << 16 && BY_FLOW[PAST].code == (BPF_ALU | BPF_ADD | BPF_K));

static constexpr bpf_insn TO_FIRST[] = {
    alu(BPF_MOV, R0, 0),
    {BPF_JMP | BPF_EXIT, 0, 0, 0, 0},
};

// Returns its descriptor, or -errno.
template <size_t length>
static int load_program(const bpf_insn (&instructions)[length]) {
  bpf_attr attr = {};
  attr.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
  attr.insns = reinterpret_cast<uint64_t>(instructions);
  attr.insn_cnt = length;
  attr.license = reinterpret_cast<uint64_t>("MIT");
  long fd = syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
  return fd < 0 ? -errno : static_cast<int>(fd);
}

static int by_flow() {
  static const int fd = load_program(BY_FLOW);
  return fd;
}

static int to_first() {
  static const int fd = load_program(TO_FIRST);
  return fd;
}

static void steer(int queue, int program) {
  if (program >= 0) ioctl(queue, TUNSETSTEERINGEBPF, &program);
}

int can_steer() {
  return by_flow() < 0 ? by_flow() : to_first() < 0 ? to_first() : 0;
}

void steer_by_flow(int queue) { steer(queue, by_flow()); }

static int load_apart(int queues) {
  bpf_insn program[LENGTH];
  memcpy(program, BY_FLOW, sizeof BY_FLOW);
  int apart = std::max(1, queues / 4);
  program[FLOWS].imm = queues - apart;
  program[PAST].imm = program[APART].imm = apart;
  return load_program(program);
}

static int apart(int queues) {
  static std::mutex one_by_one;
  static std::map<int, int> loaded;
  std::lock_guard<std::mutex> hold(one_by_one);
  int &fd = loaded.try_emplace(queues, -1).first->second;
  if (fd < 0) fd = load_apart(queues);
  return fd;
}

void prepare_to_steer_apart(int queues) { apart(queues); }

void steer_apart(int queue, int queues) {
  int fd = apart(queues);
  steer(queue, fd < 0 ? by_flow() : fd);
}

void steer_to_first(int queue) { steer(queue, to_first()); }
