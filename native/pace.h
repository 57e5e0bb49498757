// When the thread that forwards has its turn, and what it lets gather before that. The state is the
// calling thread's own, for so is what the scheduler is told.
//
// The kernel's own VXLAN runs in its sender's context and in softirqs, before any process. A thread waits
// for the scheduler, beside a TCP stream that keeps the cores busy some milliseconds, and a round trip takes
// four such turns. So one that streams, which is to carry TCP in super-frames, runs before other processes
// (SCHED_FIFO), and lets super-frames gather for a moment, as a network card moderates its interrupts: to be
// woken for each would cost more than to carry it. What arrives meanwhile from the other side ends that.
//
// One that carries single frames does neither. It is while it waits that batches build, without which it
// forwards half as many. Nor does one that would leave its core to nobody else; so ksoftirqd does not.
//
// bench/RESULTS.md has the figures.

#pragma once

#include <cstdint>

enum direction { ENCAP, DECAP };

// From now on, if that is allowed. Returns 0 or -errno: EPERM without CAP_SYS_NICE and RLIMIT_RTPRIO, EBUSY
// if somebody has given the thread a policy other than SCHED_OTHER, which is then left alone.
int pace_begin();

// The thread is as any other again.
void pace_end();

// So many frames were read from TAPs or written to them, among them so many bytes of TCP super-frames.
void pace_carried(direction way, int frames, int64_t streamed);

// Nothing waits. Sleeps for a moment if more is worth waiting for.
void pace_empty(direction way);

// A socket of the underlay, from its opening to its closing.
void pace_heed(int fd);
void pace_forget(int fd);
