// Readiness of a descriptor, told to JavaScript from the event loop of its own environment (the main
// thread's or a worker's, never uv_default_loop).
//
// libuv wants a handle's memory until its close callback has run, and an environment that ends wants
// its loop empty. So a watch owns itself: watch_stop() is final for the caller, who may close the
// descriptor at once, and the rest happens when the loop comes round. If the environment ends first,
// an asynchronous clean-up hook does the same and makes the environment wait for it.

#pragma once

#include <napi.h>

struct watch;

// Calls `callback` with `owner` as this and one number: 0 when the descriptor is readable, as often
// as the loop comes round and it still is, or up to two milliseconds later where `before`, which is called with
// `device` each time first, returns true; or a negative errno (libuv makes UV_EBADF of POLLERR)
// after which there is silence. Keeps `owner` alive. `*slot` is the watch, and becomes null when it
// stops. Once readable, the loop goes on asking for `busy_poll_us` microseconds before it sleeps, in
// which it gives its core to whoever wants it, as far as the thread's scheduling policy does; but not while it
// runs before others (pace.h), nor for 300 ms after others took the core for more than a millisecond.
// Returns 0 or -errno.
int watch_start(Napi::Object owner, Napi::Function callback, int fd, int busy_poll_us,
                bool (*before)(void *), void *device, watch **slot);
void watch_stop(watch *w);
