// A message to the service manager: sd_notify(3) without its library, of which nothing else is wanted
// and whose bindings for Node want its headers.

#pragma once

#include <napi.h>

// Descriptors that one message can carry (SCM_MAX_FD).
constexpr size_t MAX_NOTIFY_FDS = 253;

// Sends one datagram to the socket at `path` (an abstract one when that begins with '@'), with
// descriptors if `count` > 0, which stay open here. Never waits. Returns 0 or -errno: EAGAIN when the
// receiver's queue is full.
int notify_send(const char *path, size_t path_bytes, const char *message, size_t bytes,
                const int *fds, size_t count);

void define_notify(Napi::Env env, Napi::Object exports);
