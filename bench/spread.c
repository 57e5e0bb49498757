/*
 * Frames of many flows, in an order that no cache foresees, each flow in a network of its own or all in one.
 *
 *   spread in ADDRESS FIRST NETWORKS MACS FLOWS FRAMES RATE     VXLAN datagrams to port 4789 there
 *   spread out PREFIX FIRST NETWORKS MACS FLOWS FRAMES RATE     frames by the interfaces PREFIX1, PREFIX2, …
 *
 * FIRST is the first network's VNI. Flow f is of network f modulo NETWORKS, and has the MACs number f modulo MACS
 * of up to 2^24; addresses and ports are its own up to 2^16. All are the same both ways. RATE is in frames a
 * second, kept by sleeping between bursts of BURST. Every frame is sent, or the exit code is 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BURST = 32, VXLAN = 8, PAYLOAD = 64, FRAME = 14 + 20 + 8 + PAYLOAD };

static void put16(uint8_t *to, unsigned value) {
	to[0] = (uint8_t)(value >> 8);
	to[1] = (uint8_t)value;
}

/* UDP over IPv4, its checksums left out: nobody delivers it. */
static void write_frame(uint8_t *frame, unsigned mac, unsigned flow, int in) {
	memset(frame, 0, FRAME);
	memcpy(frame, "\x02\0\0\0\0\1\x02\0\0\0\0\1\x08\0\x45", 15);
	frame[in ? 1 : 7] = 0xaa;
	frame[in ? 7 : 1] = 0xbb;
	put16(frame + 2, mac);
	put16(frame + 8, mac);
	frame[4] = frame[10] = (uint8_t)(mac >> 16);
	put16(frame + 16, FRAME - 14);
	frame[22] = 64;
	frame[23] = IPPROTO_UDP;
	frame[26] = frame[30] = 10;
	put16(frame + 27, flow);
	put16(frame + 31, flow);
	frame[29] = 1;
	frame[33] = 2;
	put16(frame + 34, 1024 + flow);
	put16(frame + 36, 9);
	put16(frame + 38, FRAME - 14 - 20);
}

static void shuffle(unsigned *order, unsigned count) {
	for (unsigned at = count - 1; at > 0; at--) {
		unsigned other = (unsigned)rand() % (at + 1), kept = order[at];
		order[at] = order[other];
		order[other] = kept;
	}
}

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void sleep_until(double due) {
	struct timespec t = {(time_t)due, (long)((due - (double)(time_t)due) * 1e9)};
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

int main(int count, char **words) {
	if (count != 9) errx(1, "usage: spread in|out ADDRESS|PREFIX FIRST NETWORKS MACS FLOWS FRAMES RATE");
	int in = strcmp(words[1], "in") == 0;
	unsigned first = (unsigned)atoi(words[3]), networks = (unsigned)atoi(words[4]);
	unsigned macs = (unsigned)atoi(words[5]), flows = (unsigned)atoi(words[6]);
	long frames = atol(words[7]);
	double rate = atof(words[8]);

	struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(4789)};
	if (in && inet_pton(AF_INET, words[2], &there.sin_addr) != 1) errx(1, "no address: %s", words[2]);
	int fd = in ? socket(AF_INET, SOCK_DGRAM, 0) : socket(AF_PACKET, SOCK_RAW, 0);
	if (fd < 0) err(1, "socket");
	unsigned *order = calloc(flows, sizeof *order);
	int *interface = calloc(networks, sizeof *interface);
	if (order == NULL || interface == NULL) err(1, "calloc");
	for (unsigned flow = 0; flow < flows; flow++) order[flow] = flow;
	for (unsigned network = 0; !in && network < networks; network++) {
		char name[IFNAMSIZ];
		if (snprintf(name, sizeof name, "%s%u", words[2], network + 1) >= (int)sizeof name) errx(1, "too long");
		interface[network] = (int)if_nametoindex(name);
		if (interface[network] == 0) err(1, "%s", name);
	}

	uint8_t datagram[VXLAN + FRAME] = {0x08}, *frame = datagram + VXLAN;
	double began = now();
	for (long sent = 0; sent < frames; sent++) {
		if (sent % flows == 0) shuffle(order, flows);
		if (sent % BURST == 0) sleep_until(began + (double)sent / rate);
		unsigned flow = order[sent % flows], network = flow % networks, vni = first + network;
		write_frame(frame, flow % macs, flow, in);
		ssize_t n;
		if (in) {
			datagram[4] = (uint8_t)(vni >> 16);
			put16(datagram + 5, vni);
			n = sendto(fd, datagram, sizeof datagram, 0, (void *)&there, sizeof there);
		} else {
			struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = interface[network]};
			n = sendto(fd, frame, FRAME, 0, (void *)&to, sizeof to);
		}
		if (n < 0 && errno == ENOBUFS) {
			sent--; // the TAP was full
			sleep_until(now() + BURST / rate);
			continue;
		}
		if (n < 0) err(1, "sendto");
	}
	return 0;
}
