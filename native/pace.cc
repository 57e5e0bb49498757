#include "pace.h"

#include <poll.h>
#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <initializer_list>
#include <vector>

static constexpr int64_t SECOND = 1'000'000'000;
static constexpr int64_t WINDOW_NS = 10'000'000;
// Between two looks at the clock.
static constexpr int CALLS = 16;
// Bytes of super-frames for each frame from which on a thread streams; acknowledgements count as frames.
static constexpr int64_t STREAM = 8192;
// And bytes of them per ns, which are 2 Gbit/s: below that its turn comes soon enough.
static constexpr double FAST = 0.25;
// What a thread that runs before others takes of its time at most, in hundredths.
static constexpr int64_t SHARE = 95;
static constexpr int64_t GATHER_TAPS_NS = 800'000, GATHER_UNDERLAY_NS = 500'000;
// Bytes that are worth a wake-up.
static constexpr int64_t ENOUGH = 128 * 1024;

struct carried {
  int64_t frames, streamed;
};

struct pace {
  bool allowed, runs_first;
  int64_t since, cpu_since;  // the window's begin, in ns: on CLOCK_MONOTONIC, and of the thread's own time
  int calls;
  carried window;
  carried gathered[2];  // since a direction was empty
  int gathering;        // the socket on which datagrams are to gather
  int64_t until;        // a moment on CLOCK_MONOTONIC; 0: none
  int64_t owed;         // ns that it has to rest
  int64_t asleep;       // ns
};

static thread_local pace own;
static thread_local std::vector<pollfd> underlay;

static bool streams(const carried *c) { return c->streamed > STREAM * c->frames; }

static int64_t now(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * SECOND + t.tv_nsec;
}

// A thread that this one starts meanwhile (libuv's pool) is as any other. Without CAP_SYS_NICE the flag stays.
static int run_first(bool first) {
  sched_param parameters = {};
  parameters.sched_priority = first ? 1 : 0;
  int policy = (first ? SCHED_FIFO : SCHED_OTHER) | SCHED_RESET_ON_FORK;
  if (sched_setscheduler(0, policy, &parameters) < 0) return -errno;
  own.runs_first = first;
  return 0;
}

int pace_begin() {
  int policy = sched_getscheduler(0);
  if (policy < 0) return -errno;
  bool is_nice = getpriority(PRIO_PROCESS, 0) > 0;
  if (is_nice || (policy & ~SCHED_RESET_ON_FORK) != SCHED_OTHER) return -EBUSY;
  int error = run_first(true);
  if (error == 0) error = run_first(false);
  own.allowed = error == 0;
  return error;
}

bool pace_runs_first() { return own.runs_first; }

// Sleeps for so long, or until one of these can be read.
static void sleep_for(int64_t ns, pollfd *those, size_t count) {
  timespec moment = {0, ns};
  int64_t began = now(CLOCK_MONOTONIC);
  ppoll(those, count, &moment, nullptr);
  own.asleep += now(CLOCK_MONOTONIC) - began;
}

static void reconsider() {
  int64_t time = now(CLOCK_MONOTONIC);
  int64_t passed = time - own.since;
  if (passed < WINDOW_NS) return;
  bool is_fast = static_cast<double>(own.window.streamed) > FAST * static_cast<double>(passed);
  bool first = is_fast && streams(&own.window);
  int64_t cpu = now(CLOCK_THREAD_CPUTIME_ID);
  if (own.runs_first) own.owed = (cpu - own.cpu_since) * 100 / SHARE - passed;
  if (first != own.runs_first) run_first(first);
  own.since = time;
  own.cpu_since = cpu;
  own.window = {};
}

void pace_carried(direction way, int frames, int64_t streamed) {
  if (!own.allowed) return;
  for (carried *c : {&own.window, &own.gathered[way]}) {
    c->frames += frames;
    c->streamed += streamed;
  }
  if (++own.calls < CALLS) return;
  own.calls = 0;
  reconsider();
}

void pace_rest() {
  if (own.owed <= 0) return;
  sleep_for(std::min(own.owed, WINDOW_NS), nullptr, 0);
  own.owed = 0;
}

// Whether more is worth waiting for than has come this way since the last time.
static bool is_little(direction way) {
  carried gathered = own.gathered[way];
  own.gathered[way] = {};
  return own.runs_first && streams(&gathered) && gathered.streamed < ENOUGH;
}

void pace_taps_empty() {
  if (is_little(ENCAP)) sleep_for(GATHER_TAPS_NS, underlay.data(), underlay.size());
}

void pace_socket_empty(int fd) {
  if (!is_little(DECAP)) return;
  own.gathering = fd;
  own.until = now(CLOCK_MONOTONIC) + GATHER_UNDERLAY_NS;
}

// Nothing ends it: what is written to a TAP is answered at once, and would do so each time.
void pace_before_receive(int fd) {
  if (own.until == 0 || fd != own.gathering) return;
  int64_t left = own.until - now(CLOCK_MONOTONIC);
  own.until = 0;
  if (own.runs_first && left > 0) sleep_for(left, nullptr, 0);
}

void pace_taps_filled() { own.until = 0; }

double pace_tick() {
  if (own.allowed) reconsider();
  return static_cast<double>(own.asleep) / SECOND;
}

void pace_watch(int fd) { underlay.push_back({fd, POLLIN, 0}); }

void pace_unwatch(int fd) {
  if (fd == own.gathering) own.until = 0;
  auto is_it = [fd](const pollfd &one) { return one.fd == fd; };
  underlay.erase(std::remove_if(underlay.begin(), underlay.end(), is_it), underlay.end());
}
