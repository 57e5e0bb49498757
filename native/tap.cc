#include "tap.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

// 64 KiB of IP packet with its Ethernet and VLAN headers. A read that fills it is taken as cut off,
// because the driver does not tell (tun_chr_read_iter returns at most what was asked for).
static constexpr int32_t FRAME_ROOM = 65536 + 64;

static int configure(tap *t, const char *name, unsigned offloads, bool multi_queue,
                     const char **syscall) {
  ifreq request = {};
  strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  if (multi_queue) request.ifr_flags |= IFF_MULTI_QUEUE;
  *syscall = "ioctl(TUNSETIFF)";
  if (ioctl(t->fd, TUNSETIFF, &request) < 0) return -errno;
  memcpy(t->name, request.ifr_name, IFNAMSIZ);

  int header = sizeof(virtio_net_hdr);
  *syscall = "ioctl(TUNSETVNETHDRSZ)";
  if (ioctl(t->fd, TUNSETVNETHDRSZ, &header) < 0) return -errno;
  *syscall = "ioctl(TUNSETOFFLOAD)";
  if (ioctl(t->fd, TUNSETOFFLOAD, static_cast<unsigned long>(offloads)) < 0) return -errno;
  return 0;
}

int tap_open(tap *t, const char *name, unsigned offloads, bool multi_queue, const char **syscall) {
  *syscall = "open(/dev/net/tun)";
  t->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (t->fd < 0) return -errno;
  int error = configure(t, name, offloads, multi_queue, syscall);
  if (error < 0) tap_close(t);
  return error;
}

void tap_close(tap *t) {
  if (t->fd >= 0) close(t->fd);
  t->fd = -1;
}

int tap_read(const tap *t, const batch *b) {
  int rows = 0;
  int32_t cursor = 0;
  while (rows < layout::IN_ROWS &&
         cursor + layout::HEADROOM + FRAME_ROOM <= layout::SLAB_BYTES) {
    int32_t offset = cursor + layout::HEADROOM;
    iovec to[2] = {{vnet_of(b, rows), sizeof(virtio_net_hdr)}, {b->slab + offset, FRAME_ROOM}};
    ssize_t n = readv(t->fd, to, 2);
    if (n < 0) return rows > 0 || errno == EAGAIN ? rows : -errno;
    int32_t length = static_cast<int32_t>(n) - static_cast<int32_t>(sizeof(virtio_net_hdr));
    if (length < 0) return rows;
    b->columns[layout::IN_OFFSET + rows] = offset;
    b->columns[layout::IN_LENGTH + rows] = length;
    b->columns[layout::IN_SEGMENT + rows] = length;
    b->columns[layout::IN_FLAGS + rows] = length == FRAME_ROOM ? layout::TRUNCATED : 0;
    rows++;
    cursor = (offset + length + 15) & ~15;
  }
  return rows;
}

static int write_frame(const tap *t, const batch *b, int row) {
  int32_t offset = load(b->columns + layout::OUT_OFFSET + row);
  int32_t length = load(b->columns + layout::OUT_LENGTH + row);
  if (!in_slab(offset, length)) return EINVAL;
  virtio_net_hdr header = {};
  iovec from[2] = {{&header, sizeof header}, {b->slab + offset, static_cast<size_t>(length)}};
  return writev(t->fd, from, 2) < 0 ? errno : 0;
}

int tap_write(const tap *t, const batch *b, int first, int end) {
  int failures = 0;
  for (int row = first; row < end; row++) {
    int error = write_frame(t, b, row);
    b->columns[layout::OUT_ERROR + row] = error;
    if (error != 0) failures++;
  }
  return failures;
}
