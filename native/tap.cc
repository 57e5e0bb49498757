#include "tap.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "coalesce.h"
#include "flows.h"
#include "pace.h"
#include "steering.h"
#include "tap_set.h"

// Whoever may open /dev/net/tun, which udev lets everyone, may join a device with several queues that is nobody's
// (tun_not_capable of drivers/net/tun.c): read its frames, and send others.
static int make_ours(int fd, const char **syscall) {
  *syscall = "ioctl(TUNSETOWNER)";
  int result = ioctl(fd, TUNSETOWNER, static_cast<unsigned long>(geteuid()));
  bool has_no_name = result < 0 && errno == EINVAL;  // of a user namespace in which this user is not mapped
  return result < 0 && !has_no_name ? -errno : 0;
}

static int configure(tap *t, const char *name, int flags, const char **syscall) {
  ifreq request = {};
  memcpy(request.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
  request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags);
  *syscall = "ioctl(TUNSETIFF)";
  if (ioctl(t->fd, TUNSETIFF, &request) < 0) return -errno;
  memcpy(t->name, request.ifr_name, IFNAMSIZ);
  int error = make_ours(t->fd, syscall);
  if (error < 0) return error;

  int header = sizeof(virtio_net_hdr);
  *syscall = "ioctl(TUNSETVNETHDRSZ)";
  return ioctl(t->fd, TUNSETVNETHDRSZ, &header) < 0 ? -errno : 0;
}

static int open_queue(tap *t, const char *name, int flags, const char **syscall) {
  *syscall = "open(/dev/net/tun)";
  t->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (t->fd < 0) return -errno;
  int error = configure(t, name, flags, syscall);
  if (error < 0) tap_close(t);
  return error;
}

// Whether a device has been moved to another network namespace, where it may have another name.
static bool is_elsewhere(int fd) {
  int there = ioctl(fd, TUNGETDEVNETNS);
  if (there < 0) return false;
  struct stat its = {}, ours = {};
  bool known = fstat(there, &its) == 0 && stat("/proc/thread-self/ns/net", &ours) == 0;
  close(there);
  return known && (its.st_ino != ours.st_ino || its.st_dev != ours.st_dev);
}

void tap_open_further(tap *t) {
  int wanted = t->wanted_queues;
  t->wanted_queues = 0;
  if (is_elsewhere(t->fd)) return;
  steer_to_first(t->fd);
  prepare_to_steer_apart(wanted + 1);
  t->further = new tap[static_cast<size_t>(wanted)];
  const char *syscall;
  int &opened = t->further_queues;
  while (opened < wanted && open_queue(&t->further[opened], t->name, IFF_MULTI_QUEUE, &syscall) == 0) {
    opened++;
  }
  t->drains = opened > 0 ? UINT16_MAX : 0;  // reads of a frame each, at least; until it is empty
  if (opened > 0) steer_apart(t->fd, opened + 1);
  else steer_by_flow(t->fd);
}

int tap_open(tap *t, const tap_options *options, const char **syscall) {
  if (options->further_queues > 0 && can_steer() == 0) t->wanted_queues = static_cast<uint16_t>(options->further_queues);
  int flags = options->multi_queue ? IFF_MULTI_QUEUE : 0;
  if (t->wanted_queues > 0) flags = IFF_MULTI_QUEUE | IFF_TUN_EXCL;  // nobody else is to join it
  int error = open_queue(t, options->name, flags, syscall);
  if (error < 0) return error;
  if (options->multi_queue) steer_by_flow(t->fd);
  if (t->wanted_queues > 0) tap_open_further(t);
  return 0;
}

int tap_adopt(tap *t, int fd, const tap_options *options, const char **syscall) {
  t->fd = fd;
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  fcntl(fd, F_SETFL, O_NONBLOCK);  // the only flag of a file that there is here
  ifreq found = {};
  *syscall = "ioctl(TUNGETIFF)";
  int error = ioctl(fd, TUNGETIFF, &found) < 0 ? -errno : 0;
  bool queues = (found.ifr_flags & IFF_MULTI_QUEUE) != 0;
  bool named = strncmp(found.ifr_name, options->name, IFNAMSIZ) == 0 || is_elsewhere(fd);
  if (error == 0 && (!named || (options->multi_queue && !queues))) error = -ENODEV;
  if (error == 0) error = make_ours(fd, syscall);  // the agent before may have run as another user
  if (error < 0) return tap_close(t), error;
  strncpy(t->name, options->name, IFNAMSIZ - 1);
  if (options->multi_queue) steer_by_flow(fd);
  if (queues && can_steer() == 0) t->wanted_queues = static_cast<uint16_t>(options->further_queues);
  return 0;
}

void tap_close_further(tap *t) {
  while (t->further_queues > 0) tap_close(&t->further[--t->further_queues]);
  delete[] t->further;
  t->further = nullptr;
}

void tap_close(tap *t) {
  if (t->set != nullptr) tap_set_remove(t->set, t->slot);
  tap_close_further(t);
  if (t->fd >= 0) close(t->fd);
  t->fd = -1;
}

int tap_use_offloads(const tap *t, unsigned offloads) {
  return ioctl(t->fd, TUNSETOFFLOAD, static_cast<unsigned long>(offloads)) < 0 ? -errno : 0;
}

static constexpr int32_t VNET = sizeof(virtio_net_hdr);
static_assert(VNET <= layout::HEADROOM, "the headroom takes it");

bool has_room(const read_cursor *to) {
  static_assert(layout::TURN_BYTES + layout::HEADROOM + FRAME_ROOM <= layout::SLAB_BYTES);
  return to->row < layout::IN_ROWS && to->offset < layout::TURN_BYTES && to->datagrams < layout::IN_ROWS;
}

// That a frame makes, or a few more: its headers are counted as payload.
static int32_t datagrams_of(const virtio_net_hdr *vnet, int32_t length) {
  uint16_t size = __atomic_load_n(&vnet->gso_size, __ATOMIC_RELAXED);  // once: it must not be zero by now
  bool is_super = vnet->gso_type != layout::VNET_GSO_NONE && size > 0;
  return is_super ? 1 + length / size : 1;
}

int tap_read(const tap *t, const batch *b, read_cursor *to, int limit) {
  for (int frames = 0; frames < limit && has_room(to); frames++) {
    int32_t offset = to->offset + layout::HEADROOM;
    // In one piece, for readv(2) of two takes longer. The virtio_net_hdr comes to lie where the VXLAN header will be.
    uint8_t *begin = b->slab + offset - VNET;
    ssize_t n = read(t->fd, begin, VNET + FRAME_ROOM);
    if (n < 0) return errno == EAGAIN ? 0 : -errno;
    memcpy(vnet_of(b, to->row), begin, VNET);
    int32_t length = static_cast<int32_t>(n) - VNET;
    if (length < 0) return 0;
    b->columns[layout::IN_OFFSET + to->row] = offset;
    b->columns[layout::IN_LENGTH + to->row] = length;
    b->columns[layout::IN_SEGMENT + to->row] = length;
    b->columns[layout::IN_FLAGS + to->row] = length == FRAME_ROOM ? layout::TRUNCATED : 0;
    b->columns[layout::IN_TAP + to->row] = t->slot;
    to->datagrams += datagrams_of(vnet_of(b, to->row), length);
    to->row++;
    to->offset = (offset + length + 15) & ~15;
  }
  return 0;
}

int tap_read_one(const tap *t, held *h, uint8_t *rest) {
  iovec parts[3] = {{&h->vnet, sizeof h->vnet},
                    {h->bytes + layout::HEADROOM, HELD_BYTES},
                    {rest, FRAME_ROOM - HELD_BYTES}};
  ssize_t n = readv(t->fd, parts, 3);
  if (n < 0) return errno == EAGAIN ? 0 : -errno;
  h->length = static_cast<int32_t>(n) - static_cast<int32_t>(sizeof h->vnet);
  h->truncated = h->length == FRAME_ROOM;
  h->slot = t->slot;
  return h->length >= 0 ? 1 : 0;
}

struct writing {
  tap *t;
  const batch *b;
  int failures;
  int frames;
  int64_t streamed;  // bytes of those among them that are super-frames of TCP
};

static void set_error(writing *w, int row, int error) {
  w->b->columns[layout::OUT_ERROR + row] = error;
  if (error != 0) w->failures++;
}

int tap_write_one(const tap *t, uint8_t *frame, int32_t length) {
  virtio_net_hdr header = {};
  iovec from[2] = {{&header, sizeof header}, {frame, static_cast<size_t>(length)}};
  return writev(t->fd, from, 2) < 0 ? errno : 0;
}

static int write_row(const tap *t, const batch *b, int row) {
  int32_t offset = load(b->columns + layout::OUT_OFFSET + row);
  int32_t length = load(b->columns + layout::OUT_LENGTH + row);
  return in_slab(offset, length) ? tap_write_one(t, b->slab + offset, length) : EINVAL;
}

static std::atomic<int> demotions;

int tap_demotions() { return demotions; }

static void write_train(void *owner, const frame_train *train) {
  writing *w = static_cast<writing *>(owner);
  int error = writev(w->t->fd, train->part, train->parts) < 0 ? errno : 0;
  bool refused = error == EINVAL && train->rows > 1;
  if (refused) {
    (train->at.tcp ? w->t->coalesce_tcp : w->t->coalesce_udp) = false;
    demotions++;
  }
  bool streams = train->rows > 1 && train->at.tcp;
  w->frames += streams ? 1 : train->rows;
  if (streams) w->streamed += train->total;
  for (int i = 0; i < train->rows; i++) {
    set_error(w, train->row[i], refused ? write_row(w->t, w->b, train->row[i]) : error);
  }
}

int tap_write(tap *t, const batch *b, int first, int end) {
  writing w = {t, b, 0, 0, 0};
  coalescer *c = b->trains;
  c->close = write_train;
  c->owner = &w;
  c->tcp = t->coalesce_tcp;
  c->udp = t->coalesce_udp;
  for (int row = first; row < end; row++) {
    int32_t offset = load(b->columns + layout::OUT_OFFSET + row);
    int32_t length = load(b->columns + layout::OUT_LENGTH + row);
    if (in_slab(offset, length)) coalesce(c, row, b->slab + offset, length);
    else set_error(&w, row, EINVAL);
  }
  coalesce_end(c);
  pace_carried(DECAP, w.frames, w.streamed);
  return w.failures;
}
