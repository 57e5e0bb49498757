// Where the headers of an inner TCP segment or UDP datagram lie, for those that cut and join them.

#pragma once

#include <cstdint>
#include <cstring>

struct headers {
  int32_t l3, l4, payload;  // bytes from the start of the frame
  bool v6, tcp;
};

inline uint16_t get16(const uint8_t *at) { return static_cast<uint16_t>(at[0] << 8 | at[1]); }
// In the order of memory, as checksums are (checksum.h).
inline uint16_t word_at(const uint8_t *at) {
  uint16_t word;
  memcpy(&word, at, sizeof word);
  return word;
}
inline uint32_t get32(const uint8_t *at) {
  return static_cast<uint32_t>(get16(at)) << 16 | get16(at + 2);
}
inline void put16(uint8_t *at, uint32_t value) {
  at[0] = static_cast<uint8_t>(value >> 8);
  at[1] = static_cast<uint8_t>(value);
}
inline void put32(uint8_t *at, uint32_t value) {
  put16(at, value >> 16);
  put16(at + 2, value & 0xffff);
}

constexpr int32_t ETHERNET = 14;
constexpr int32_t ETHERNET_TYPE = 12;
constexpr int32_t TAG = 4;

constexpr int32_t IPV4 = 20;
constexpr int32_t IPV4_LENGTH = 2;
constexpr int32_t IPV4_ID = 4;
constexpr int32_t IPV4_FRAGMENT = 6;
constexpr int32_t IPV4_PROTOCOL = 9;
constexpr int32_t IPV4_CHECKSUM = 10;
constexpr int32_t IPV4_ADDRESSES = 12;
constexpr uint32_t IPV4_DF = 0x4000;

constexpr int32_t IPV6 = 40;
constexpr int32_t IPV6_LENGTH = 4;
constexpr int32_t IPV6_NEXT = 6;
constexpr int32_t IPV6_ADDRESSES = 8;

constexpr int32_t TCP = 20;
constexpr int32_t TCP_SEQUENCE = 4;
constexpr int32_t TCP_OFFSET = 12;
constexpr int32_t TCP_FLAGS = 13;
constexpr int32_t TCP_CHECKSUM = 16;
constexpr uint8_t TCP_FIN = 0x01, TCP_PSH = 0x08, TCP_ACK = 0x10, TCP_CWR = 0x80;

constexpr int32_t UDP = 8;
constexpr int32_t UDP_DESTINATION = 2;
constexpr int32_t UDP_LENGTH = 4;
constexpr int32_t UDP_CHECKSUM = 6;

// Of the checksum in the transport header.
constexpr int32_t checksum_offset(bool tcp) { return tcp ? TCP_CHECKSUM : UDP_CHECKSUM; }

constexpr uint8_t PROTOCOL_TCP = 6, PROTOCOL_UDP = 17;
constexpr uint16_t TYPE_IPV4 = 0x0800, TYPE_IPV6 = 0x86dd, TYPE_VLAN = 0x8100, TYPE_SVLAN = 0x88a8;

// All headers in front of the payload of a segment that may be joined: of Ethernet with a tag, of IP without options
// or extensions, of TCP with options.
constexpr int32_t MAX_HEADERS = 128;
// Of a super-frame, which is cut whatever is in front: a socket may ask for an extension of IPv6 of 2 KiB
// (IPV6_HOPOPTS, IPV6_DSTOPTS). They are written for every segment, hence a limit.
constexpr int32_t MOST_HEADERS = 2304;
