/*
 * A UDP source and its sink, in one process, with no more per datagram than sendmmsg and recvmmsg cost.
 *
 *   blast NETNS ADDRESS SIZE SECONDS RATE SENDERS
 *
 * The sources are sockets of the namespace it is started in; the sink is one of NETNS (a path), where
 * ADDRESS is, of IPv4 or IPv6. SIZE is that of a payload, RATE the datagrams per second of all SENDERS
 * (threads, each with a source port of its own) together, 0 for as many as they can. Prints one line:
 *
 *   {"sent":…,"received":…,"seconds":…,"lasted":…,"lost":…,"reordered":…,"silence":…}
 *
 * `seconds` is how long the sources took, `lasted` how long it was until the last datagram had arrived:
 * what arrives later, from queues, counts as received, so a rate is over the longer of both. `silence`
 * is the longest time, in seconds, in which nothing arrived after the first and before the last. A
 * datagram is reordered when one that its sender sent after it has arrived before it.
 *
 * Nothing blocks in a send or a receive: a source whose socket is full waits for it in poll(2), and so
 * does a sink that has nothing to read. A paced source sends what is due, at most BURST at once, and
 * sleeps until about TICK later; one that cannot keep up sends without sleeping, and `sent` tells.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

enum {
	BURST = 64,
	MAX_SENDERS = 16,
	MAX_SIZE = 65507,
	SLOT = 2048,                 /* of the sink; longer datagrams are cut, which nobody minds */
	SOCKET_BUFFER = 4 << 20,     /* as far as rmem_max and wmem_max permit */
	TICK_NS = 50 * 1000,
	DRAIN_MS = 50,               /* silence after which nothing is on its way any more */
	MAX_DRAIN_MS = 3000,
};

struct mark {                        /* the head of a payload */
	uint32_t sender;
	uint32_t number;             /* from 0 */
};

struct source {
	pthread_t thread;
	int fd;
	uint32_t id;
	double rate;                 /* 0: unpaced */
	uint64_t sent;
	double seconds;
};

static const char *far_netns;
static union {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
} far;
static size_t size;
static double duration;
static unsigned senders;

static struct source sources[MAX_SENDERS];
static atomic_bool finished;         /* every source has ended */
static uint64_t received, reordered;
static double outset;                /* when the sources began */
static double lasted, silence;

static void die(const char *what)
{
	fprintf(stderr, "blast: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int udp_socket(void)
{
	int bytes = SOCKET_BUFFER;
	int fd = socket(far.any.sa_family, SOCK_DGRAM | SOCK_NONBLOCK, 0);

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
	return fd;
}

/* ---- source */

static unsigned due(const struct source *source, double elapsed)
{
	double behind;

	if (!source->rate)
		return BURST;
	behind = elapsed * source->rate - (double)source->sent;
	return behind < 1 ? 0 : behind < BURST ? (unsigned)behind : BURST;
}

static void *send_all(void *argument)
{
	struct source *source = argument;
	static const struct timespec tick = { .tv_nsec = TICK_NS };
	struct mmsghdr messages[BURST] = { 0 };
	struct iovec slices[BURST];
	struct pollfd writable = { .fd = source->fd, .events = POLLOUT };
	char *payloads = calloc(BURST, size);
	double began, elapsed;

	if (!payloads)
		die("calloc");
	for (unsigned i = 0; i < BURST; i++) {
		slices[i] = (struct iovec){ payloads + i * size, size };
		messages[i].msg_hdr.msg_iov = &slices[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	prctl(PR_SET_TIMERSLACK, 1UL); /* a sleep of 50 µs would take 100 */
	for (began = now(); (elapsed = now() - began) < duration;) {
		unsigned count = due(source, elapsed);
		int n;

		if (!count) {
			nanosleep(&tick, NULL);
			continue;
		}
		for (unsigned i = 0; i < count; i++) {
			struct mark mark = { source->id, (uint32_t)source->sent + i };
			memcpy(slices[i].iov_base, &mark, sizeof mark);
		}
		n = sendmmsg(source->fd, messages, count, 0);
		if (n > 0)
			source->sent += (unsigned)n;
		else if (errno == EAGAIN)
			poll(&writable, 1, 1);
		else if (errno != ENOBUFS && errno != EINTR && errno != ECONNREFUSED)
			die("sendmmsg");
	}
	source->seconds = elapsed;
	free(payloads);
	return NULL;
}

/* ---- sink */

static void note(const char *payload, unsigned length, uint32_t next[])
{
	struct mark mark;

	memcpy(&mark, payload, sizeof mark);
	if (length < sizeof mark || mark.sender >= senders)
		return; /* not ours */
	received++;
	if (mark.number < next[mark.sender])
		reordered++;
	else
		next[mark.sender] = mark.number + 1;
}

static void *receive_all(void *argument)
{
	static char slots[BURST][SLOT];
	uint32_t next[MAX_SENDERS] = { 0 };
	struct mmsghdr messages[BURST] = { 0 };
	struct iovec slices[BURST];
	struct pollfd readable = { .fd = *(int *)argument, .events = POLLIN };
	double end = 0, heard = 0;

	for (unsigned i = 0; i < BURST; i++) {
		slices[i] = (struct iovec){ slots[i], SLOT };
		messages[i].msg_hdr.msg_iov = &slices[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	for (;;) {
		int n = recvmmsg(readable.fd, messages, BURST, 0, NULL);

		if (n < 0 && errno != EAGAIN && errno != EINTR)
			die("recvmmsg");
		for (int i = 0; i < n; i++)
			note(slots[i], messages[i].msg_len, next);
		if (n > 0) {
			double at = now();
			if (heard && at - heard > silence)
				silence = at - heard;
			heard = at;
			lasted = at - outset;
		}
		if (atomic_load(&finished)) {
			if (!end)
				end = now() + MAX_DRAIN_MS / 1e3;
			else if (now() > end)
				break;
		}
		if (n <= 0 && poll(&readable, 1, DRAIN_MS) == 0 && end)
			break;
	}
	return NULL;
}

/* A socket belongs to the namespace its thread was in when it was made. */
static void *open_sink(void *argument)
{
	socklen_t length = sizeof far;
	int fd, netns = open(far_netns, O_RDONLY | O_CLOEXEC);

	if (netns < 0 || setns(netns, CLONE_NEWNET) < 0)
		die(far_netns);
	fd = udp_socket();
	if (bind(fd, &far.any, sizeof far) < 0 || getsockname(fd, &far.any, &length) < 0)
		die("bind");
	*(int *)argument = fd;
	return NULL;
}

static bool is_address(const char *text)
{
	bool has_colon = strchr(text, ':');

	far.any.sa_family = has_colon ? AF_INET6 : AF_INET;
	if (has_colon)
		return inet_pton(AF_INET6, text, &far.v6.sin6_addr) == 1;
	return inet_pton(AF_INET, text, &far.v4.sin_addr) == 1;
}

int main(int argc, char **argv)
{
	pthread_t opener, sink;
	int sink_fd = -1;
	uint64_t sent = 0;
	double seconds = 0;

	if (argc != 7)
		goto usage;
	far_netns = argv[1];
	size = strtoul(argv[3], NULL, 10);
	duration = strtod(argv[4], NULL);
	senders = (unsigned)strtoul(argv[6], NULL, 10);
	if (!is_address(argv[2]) || size < sizeof(struct mark) || size > MAX_SIZE || duration <= 0 ||
	    duration > 600 || senders < 1 || senders > MAX_SENDERS)
		goto usage;

	if (pthread_create(&opener, NULL, open_sink, &sink_fd) || pthread_join(opener, NULL) ||
	    pthread_create(&sink, NULL, receive_all, &sink_fd))
		die("pthread_create");
	for (unsigned i = 0; i < senders; i++) {
		sources[i].id = i;
		sources[i].rate = strtod(argv[5], NULL) / senders;
		sources[i].fd = udp_socket();
		if (connect(sources[i].fd, &far.any, sizeof far) < 0)
			die("connect");
	}
	outset = now();
	for (unsigned i = 0; i < senders; i++)
		if (pthread_create(&sources[i].thread, NULL, send_all, &sources[i]))
			die("pthread_create");
	for (unsigned i = 0; i < senders; i++) {
		pthread_join(sources[i].thread, NULL);
		sent += sources[i].sent;
		if (sources[i].seconds > seconds)
			seconds = sources[i].seconds;
	}
	atomic_store(&finished, true);
	pthread_join(sink, NULL);
	printf("{\"sent\":%llu,\"received\":%llu,\"seconds\":%.6f,\"lasted\":%.6f,\"lost\":%lld,"
	       "\"reordered\":%llu,\"silence\":%.6f}\n",
	       (unsigned long long)sent, (unsigned long long)received, seconds, lasted,
	       (long long)(sent - received), (unsigned long long)reordered, silence);
	return 0;

usage:
	fprintf(stderr, "usage: blast NETNS ADDRESS SIZE SECONDS RATE SENDERS\n");
	return 2;
}
