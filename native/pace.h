// When the thread that forwards has its turn, and what it lets gather before that. The state is the
// calling thread's own, for so is what the scheduler is told.
//
// The kernel's own VXLAN runs in its sender's context and in softirqs, before any process. A thread waits
// for the scheduler, beside a TCP stream that keeps the cores busy some milliseconds, and a round trip takes
// four such turns. So one that streams, which is to carry TCP in super-frames at more than 2 Gbit/s, runs
// before other processes (SCHED_FIFO), and lets super-frames gather for a moment, as a network card moderates
// its interrupts: to be woken for each would cost more than to carry it. What arrives meanwhile from the
// underlay ends that at the TAPs.
//
// It leaves a twentieth of its time to others, as the kernel would make it (sched(7)), but of every 10 ms instead
// of every second. One that carries single frames is as any other: it is while it waits that batches
// build, without which it forwards half as many.
//
// bench/RESULTS.md has the figures.

#pragma once

#include <cstdint>

enum direction { ENCAP, DECAP };

// From now on, if that is allowed. Returns 0 or -errno: EPERM with neither CAP_SYS_NICE nor RLIMIT_RTPRIO, or in
// a cgroup without real-time (CONFIG_RT_GROUP_SCHED); EBUSY if somebody has given the thread a policy other than
// SCHED_OTHER, or made it nice, which is then left alone. That is asked only now.
int pace_begin();

// Whether the thread was made to run before others here; a policy of the user's own is none of this.
bool pace_runs_first();

// So many frames were read from TAPs or written to them, among them so many bytes of TCP super-frames; or
// datagrams came, whatever becomes of them.
void pace_carried(direction way, int frames, int64_t streamed);

// Nothing is in hand. Sleeps for as long as the thread has taken more than its share.
void pace_rest();

// Nothing waits on the TAPs. Sleeps for a moment if more is worth waiting for.
void pace_taps_empty();

// More waits on the TAPs than a turn takes: nothing is let gather meanwhile.
void pace_taps_filled();

// Nothing waits on this socket of the underlay. If more is worth waiting for, the thread is to sleep, but only before
// the next read, so that first what was written to the TAPs is answered.
void pace_socket_empty(int fd);

// This socket is about to be read. Sleeps for what is left of that moment.
void pace_before_receive(int fd);

// To be called about once a second, so that a thread which carries nothing is as any other. Returns for how
// many seconds it has slept so, or rested.
double pace_tick();

// A socket of the underlay, from its opening to its closing.
void pace_watch(int fd);
void pace_unwatch(int fd);
