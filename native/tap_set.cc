#include "tap_set.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "pace.h"
#include "steering.h"

int tap_set_open(tap_set *s) {
  s->fd = epoll_create1(EPOLL_CLOEXEC);
  return s->fd < 0 ? -errno : 0;
}

void tap_set_close(tap_set *s) {
  for (size_t slot = 0; slot < s->member.size(); slot++) {
    tap_set_remove(s, static_cast<int>(slot));
  }
  if (s->fd >= 0) close(s->fd);
  s->fd = -1;
  if (s->flows == nullptr || s->flows->taps != s) return;
  s->flows->taps = nullptr;
  s->flows->frames = 0;
}

static tap *member(const tap_set *s, int slot) {
  size_t at = static_cast<size_t>(slot);
  return slot >= 0 && at < s->member.size() ? s->member[at] : nullptr;
}

// Which queue of which TAP: 0, or a further one, counted from 1.
static uint64_t place_of(int slot, int queue) {
  return static_cast<uint64_t>(queue) << 32 | static_cast<uint64_t>(slot);
}

static int slot_at(uint64_t place) { return static_cast<int>(place & INT32_MAX); }

// Null if it has left since it was found readable, whoever has its slot now.
static tap *queue_at(const tap_set *s, uint64_t place) {
  tap *t = member(s, slot_at(place));
  int queue = static_cast<int>(place >> 32);
  if (t == nullptr || queue > t->further_queues) return nullptr;
  return queue == 0 ? t : &t->further[queue - 1];
}

static int wait_for(const tap_set *s, const tap *queue, uint64_t place) {
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.u64 = place;
  return epoll_ctl(s->fd, EPOLL_CTL_ADD, queue->fd, &event) < 0 ? -errno : 0;
}

static int wait_for_further(const tap_set *s, tap *t) {
  int error = 0;
  for (int queue = 1; error == 0 && queue <= t->further_queues; queue++) {
    t->further[queue - 1].slot = t->slot;
    error = wait_for(s, &t->further[queue - 1], place_of(t->slot, queue));
  }
  return error;
}

int tap_set_add(tap_set *s, int slot, tap *t) {
  if (t->set != nullptr || member(s, slot) != nullptr) return -EEXIST;
  if (s->member.size() <= static_cast<size_t>(slot)) s->member.resize(static_cast<size_t>(slot) + 1);
  s->member[static_cast<size_t>(slot)] = t;
  t->set = s;
  t->slot = slot;
  t->most = layout::IN_ROWS;
  int error = wait_for(s, t, place_of(slot, 0));
  if (error == 0) error = wait_for_further(s, t);
  if (error < 0) tap_set_remove(s, slot);
  return error;
}

// By name, for a descriptor that somebody has a copy of does not leave by being closed (epoll(7)).
void tap_set_remove(tap_set *s, int slot) {
  tap *t = member(s, slot);
  if (t == nullptr) return;
  epoll_ctl(s->fd, EPOLL_CTL_DEL, t->fd, nullptr);
  for (int i = 0; i < t->further_queues; i++) {
    epoll_ctl(s->fd, EPOLL_CTL_DEL, t->further[i].fd, nullptr);
  }
  s->member[static_cast<size_t>(slot)] = nullptr;
  t->set = nullptr;
  if (s->flows != nullptr) flows_forget(s->flows);
}

static bool is_gone(int error) { return error == EBADFD || error == ENODEV; }

// A frame that the kernel cannot express is lost, and the next one may be well.
static bool is_lost(tap *t, int error) { return is_gone(error) || ++t->faults >= LAST_STRAW; }

// Where several are readable, one that had a single frame last time is asked for one: asking again would
// cost as much as reading it did. If it was readable the time before as well, more wait there than that; after a turn
// that was filled it may have been, unread. One that is to be drained is read until nothing waits.
static int limit_of(const tap_set *s, const tap *t) {
  bool rare = !s->filled && t->drains == 0 && t->last == 1 && t->round + 1 != s->round;
  if (s->end > 1 && rare) return 1;
  const tap *first = member(s, t->slot);
  return first->most == layout::IN_ROWS ? layout::IN_ROWS : std::max(1, first->most / (1 + first->further_queues));
}

void tap_set_limit(tap_set *s, int slot, int frames) {
  tap *t = member(s, slot);
  if (t != nullptr) t->most = static_cast<uint16_t>(frames);
}

// So that those to come are fetched while those before them are at work: of thousands none is in the cache.
static void prefetch(const tap_set *s, int slot) {
  const tap *t = member(s, slot);
  if (t != nullptr) __builtin_prefetch(t);
}

// Turns for which a queue that fills them lets others pass before it.
static constexpr unsigned PATIENCE = 16;

// Less for what is to be read sooner: what has waited longest, but those that fill turns last, and what is to be
// drained before all.
static uint64_t order_of(const tap_set *s, uint64_t place) {
  const tap *t = queue_at(s, place);
  if (t == nullptr || t->drains > 0) return 0;
  unsigned waited = s->round - t->round;
  bool comes_last = t->fills && waited < PATIENCE;
  return static_cast<uint64_t>(comes_last) << 32 | (UINT32_MAX - waited);
}

static void order_ready(tap_set *s) {
  struct {
    uint64_t order;
    epoll_event event;
  } sorted[layout::IN_ROWS];
  for (int i = 0; i < s->end; i++) sorted[i] = {order_of(s, s->ready[i].data.u64), s->ready[i]};
  std::sort(sorted, sorted + s->end, [](const auto &a, const auto &b) { return a.order < b.order; });
  for (int i = 0; i < s->end; i++) s->ready[i] = sorted[i].event;
}

// Whether there are any.
static bool ask_for_ready(tap_set *s) {
  int n = epoll_wait(s->fd, s->ready, sizeof s->ready / sizeof *s->ready, 0);
  s->next = 0;
  s->end = n < 0 ? 0 : n;
  s->round++;
  for (int i = 0; i < s->end; i++) prefetch(s, slot_at(s->ready[i].data.u64));
  if (s->filled) order_ready(s);
  return s->end > 0;
}

// Returns 0 or -errno.
static int read_member(const tap_set *s, tap *t, const batch *b, read_cursor *to) {
  int before = to->row;
  int32_t begin = to->offset, datagrams = to->datagrams;
  int limit = limit_of(s, t);
  int error = tap_read(t, b, to, limit);
  int frames = to->row - before;
  t->last = static_cast<uint16_t>(has_room(to) ? frames : layout::IN_ROWS);  // or more
  t->fills = !has_room(to) && (2 * frames > layout::IN_ROWS || 2 * (to->offset - begin) > layout::TURN_BYTES ||
                               2 * (to->datagrams - datagrams) > layout::IN_ROWS);
  t->round = s->round;
  if (frames > 0) t->faults = 0;
  if (t->drains > 0) t->drains--;
  bool is_empty = error == 0 && t->last < limit;
  if (!is_empty) return error;
  t->drains = 0;
  if (t->wanted_queues == 0) return 0;
  tap_open_further(t);
  if (wait_for_further(s, t) < 0) tap_close_further(t);
  return 0;
}

static void count_read(const batch *b, int rows) {
  int64_t streamed = 0;
  for (int row = 0; row < rows; row++) {
    int kind = gso_kind(vnet_of(b, row));
    bool tcp = kind == layout::VNET_GSO_TCPV4 || kind == layout::VNET_GSO_TCPV6;
    if (tcp) streamed += load(b->columns + layout::IN_LENGTH + row);
  }
  pace_carried(ENCAP, rows, streamed);
}

int tap_set_read(tap_set *s, const batch *b) {
  if (s->flows != nullptr) {
    int rows = flows_take_frames(s->flows, b);
    if (rows > 0) return rows;
  }
  pace_rest();
  read_cursor to = {};
  bool asked = false;
  if (s->filled) s->next = s->end;  // what has come since may be little
  while (has_room(&to)) {
    if (s->next == s->end) {
      if (asked || !ask_for_ready(s)) break;
      asked = true;
    }
    tap *t = queue_at(s, s->ready[s->next].data.u64);
    int error = t == nullptr ? 0 : read_member(s, t, b, &to);
    if (error < 0 && is_lost(t, -error)) {
      if (to.row > 0) break;  // first what was read; it will fail again
      b->columns[layout::IN_TAP] = t->slot;
      s->next++;
      return error;
    }
    s->next++;
  }
  s->filled = !has_room(&to);
  if (s->filled) pace_taps_filled();
  if (to.row > 0) count_read(b, to.row);
  else pace_taps_empty();
  return to.row;
}

void tap_set_gather(const tap_set *s) {
  for (const tap *t : s->member) {
    if (t == nullptr || t->further_queues == 0) continue;
    steer_to_first(t->fd);
    epoll_ctl(s->fd, EPOLL_CTL_DEL, t->fd, nullptr);
  }
}

int tap_set_write(tap_set *s, const batch *b, int count) {
  for (int row = 0; row < count; row++) prefetch(s, load(b->columns + layout::OUT_TAP + row));
  int failures = 0;
  for (int row = 0; row < count;) {
    int slot = load(b->columns + layout::OUT_TAP + row);
    if (flows_have_moved(s->flows, b, row, layout::OUT_TAP)) {
      b->columns[layout::OUT_ERROR + row++] = 0;
      continue;
    }
    int end = row + 1;
    while (end < count && load(b->columns + layout::OUT_TAP + end) == slot &&
           !flows_have_moved(s->flows, b, end, layout::OUT_TAP)) {
      end++;
    }
    tap *t = member(s, slot);
    if (t != nullptr) {
      failures += tap_write(t, b, row, end);
    } else {
      for (int i = row; i < end; i++) b->columns[layout::OUT_ERROR + i] = ENODEV;
      failures += end - row;
    }
    row = end;
  }
  if (s->flows != nullptr && count == 1 && failures == 0) flows_learn_decap(s->flows, b);
  return failures;
}

int tap_set_read_one(tap_set *s, held *h, uint8_t *rest) {
  epoll_event ready;
  if (epoll_wait(s->fd, &ready, 1, 0) != 1) return 0;
  const tap *t = queue_at(s, ready.data.u64);
  if (t == nullptr) return 0;
  tap *first = member(s, t->slot);
  if (first->drains > 0) {
    int read = tap_read_one(first, h, rest);
    if (read != 0) return read;
    first->drains = 0;
  }
  return tap_read_one(t, h, rest);
}

bool tap_set_write_one(const tap_set *s, int slot, uint8_t *frame, int32_t length) {
  const tap *t = member(s, slot);
  return t != nullptr && tap_write_one(t, frame, length) == 0;
}
