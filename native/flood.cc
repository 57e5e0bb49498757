#include "flood.h"

#include <pthread.h>
#include <sched.h>
#include <uv.h>

#include <algorithm>
#include <cstdlib>

// Who keeps the other thread waiting for so long, with messages in hand, has lost its core to somebody who may take it
// again: to a thread that runs before others (pace.h) for 10 ms. So for a while nobody is asked, for longer each time if
// that is more than one time in four that it helps.
static constexpr uint64_t LATE_NS = 500'000;
static constexpr uint64_t LEAST_ALONE_NS = 10'000'000, MOST_ALONE_NS = 1'000'000'000;

struct flood {
  uv_thread_t second;
  uv_mutex_t lock;
  uv_cond_t called, done;
  // Written with the lock, and while nothing is in hand.
  int fd;
  mmsghdr *messages;
  // With the lock.
  int next, count;  // nobody has had those from `next` on
  int in_hands;     // pieces
  bool has_helped;  // the second thread had one
  unsent *left;
  bool ending;
  // Of the first thread's.
  int core;              // which the second one is kept off; -1: none
  uint64_t alone_until;  // on uv_hrtime()'s clock
  uint64_t alone_ns;     // the next time
};

// Returns what is not sent.
static range send_piece(int fd, mmsghdr *messages, range piece) {
  while (piece.begin < piece.end) {
    unsigned count = static_cast<unsigned>(piece.end - piece.begin);
    int n = sendmmsg(fd, messages + piece.begin, count, MSG_DONTWAIT);
    if (n <= 0) break;
    piece.begin += n;
  }
  return piece;
}

// Piece by piece, as long as there are any. To be called with the lock, which it gives back meanwhile.
static void work(flood *f) {
  while (f->next < f->count) {
    range piece = {f->next, std::min(f->next + FLOOD_PIECE, f->count)};
    f->next = piece.end;
    f->in_hands++;
    uv_mutex_unlock(&f->lock);
    piece = send_piece(f->fd, f->messages, piece);
    uv_mutex_lock(&f->lock);
    f->in_hands--;
    if (piece.begin < piece.end) f->left->piece[f->left->pieces++] = piece;
  }
}

static void help(void *data) {
  flood *f = static_cast<flood *>(data);
  pthread_setname_np(pthread_self(), "vtep-flood");
  uv_mutex_lock(&f->lock);
  while (!f->ending) {
    if (f->next == f->count) {
      uv_cond_wait(&f->called, &f->lock);
      continue;
    }
    f->has_helped = true;
    work(f);
    uv_cond_signal(&f->done);
  }
  uv_mutex_unlock(&f->lock);
}

static void destroy(flood *f) {
  uv_cond_destroy(&f->done);
  uv_cond_destroy(&f->called);
  uv_mutex_destroy(&f->lock);
  delete f;
}

flood *flood_open() {
  flood *f = new flood{};
  f->core = -1;
  f->alone_ns = LEAST_ALONE_NS;
  // Which fail for want of memory alone, as `new` does.
  if (uv_mutex_init(&f->lock) != 0 || uv_cond_init(&f->called) != 0 || uv_cond_init(&f->done) != 0) abort();
  if (uv_thread_create(&f->second, help, f) == 0) return f;
  destroy(f);
  return nullptr;
}

void flood_close(flood *f) {
  uv_mutex_lock(&f->lock);
  f->ending = true;
  uv_cond_signal(&f->called);
  uv_mutex_unlock(&f->lock);
  uv_thread_join(&f->second);
  destroy(f);
}

// Whether the second thread is kept off this core, on others that this one may use.
static bool is_elsewhere(flood *f) {
  int core = sched_getcpu();
  if (core == f->core) return true;
  cpu_set_t cores;
  if (core < 0 || sched_getaffinity(0, sizeof cores, &cores) < 0) return false;
  CPU_CLR(static_cast<size_t>(core), &cores);
  if (pthread_setaffinity_np(f->second, sizeof cores, &cores) != 0) return false;
  f->core = core;
  return true;
}

bool flood_send(flood *f, int fd, mmsghdr *messages, int count, unsent *left) {
  if (uv_hrtime() < f->alone_until || !is_elsewhere(f)) return false;
  left->pieces = 0;
  uv_mutex_lock(&f->lock);
  f->fd = fd;
  f->messages = messages;
  f->next = 0;
  f->count = count;
  f->left = left;
  f->has_helped = false;
  uv_cond_signal(&f->called);
  work(f);
  uint64_t began = uv_hrtime();
  while (f->in_hands > 0) uv_cond_wait(&f->done, &f->lock);
  uint64_t ended = uv_hrtime();
  if (ended - began > LATE_NS) {
    f->alone_until = ended + f->alone_ns;
    f->alone_ns = std::min(8 * f->alone_ns, MOST_ALONE_NS);
  } else if (f->has_helped) {  // who had none says nothing of whether its core is its own again
    f->alone_ns = std::max(f->alone_ns / 2, LEAST_ALONE_NS);
  }
  uv_mutex_unlock(&f->lock);
  return true;
}
