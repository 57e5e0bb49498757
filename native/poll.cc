#include "poll.h"

#include <sched.h>
#include <uv.h>

#include "pace.h"

// Who takes the core for so long when it is given away may work on it all the time, and who polls beside that gets
// nothing: so for a while the thread sleeps at once, and is woken before the other. A slice is longer, whatever the
// kernel's tick.
static constexpr uint64_t TAKEN_NS = 1'000'000;
static constexpr uint64_t SHARED_NS = 300'000'000;

// By when the answer to a lone frame has passed.
static constexpr uint64_t LATER_MS = 2;

static thread_local uint64_t shared_until;  // on uv_hrtime()'s clock

struct watch {
  uv_poll_t handle;
  // While it is active the loop asks for readiness without waiting for it.
  uv_idle_t spin;
  uv_timer_t later;
  uint64_t spin_ns, spin_until;
  bool (*before)(void *);
  void *device;
  int open_handles;
  Napi::ObjectReference owner;
  Napi::FunctionReference callback;
  Napi::AsyncContext context;
  // The library has only synchronous hooks, which cannot wait for the loop to close a handle.
  napi_async_cleanup_hook_handle hook;
  watch **slot;
};

static void release(watch *w) {
  napi_async_cleanup_hook_handle hook = w->hook;
  {
    Napi::HandleScope scope(w->owner.Env());
    delete w;
  }
  // Last, because the environment may be waiting for just this.
  if (hook != nullptr) napi_remove_async_cleanup_hook(hook);
}

static void on_closed(uv_handle_t *handle) {
  watch *w = static_cast<watch *>(handle->data);
  if (--w->open_handles == 0) release(w);
}

void watch_stop(watch *w) {
  *w->slot = nullptr;
  uv_close(reinterpret_cast<uv_handle_t *>(&w->handle), on_closed);
  uv_close(reinterpret_cast<uv_handle_t *>(&w->spin), on_closed);
  uv_close(reinterpret_cast<uv_handle_t *>(&w->later), on_closed);
}

static void on_environment_end(napi_async_cleanup_hook_handle, void *data) {
  watch *w = static_cast<watch *>(data);
  if (!uv_is_closing(reinterpret_cast<uv_handle_t *>(&w->handle))) watch_stop(w);
}

// A thread that runs before others does not give its core away by yielding.
static bool may_spin(uint64_t time) { return time >= shared_until && !pace_runs_first(); }

static void on_spin(uv_idle_t *spin) {
  uint64_t time = uv_hrtime();
  if (time >= static_cast<const watch *>(spin->data)->spin_until || !may_spin(time)) {
    uv_idle_stop(spin);
    return;
  }
  sched_yield();
  uint64_t again = uv_hrtime();
  if (again - time > TAKEN_NS) shared_until = again + SHARED_NS;
}

// The callback may stop this watch, or throw: then it is an uncaught exception like any other's.
// When the environment is ending JavaScript cannot run, and nothing is to be told.
static void call(const watch *w, int status) {
  Napi::Env env = w->owner.Env();
  Napi::HandleScope scope(env);
  w->callback.Value().MakeCallback(w->owner.Value(), {Napi::Number::New(env, status)}, w->context);
  if (env.IsExceptionPending()) {
    napi_fatal_exception(env, env.GetAndClearPendingException().Value());
  }
}

static void on_later(uv_timer_t *later) { call(static_cast<const watch *>(later->data), 0); }

static void on_poll(uv_poll_t *handle, int status, int) {
  watch *w = static_cast<watch *>(handle->data);  // which lives until the loop comes round
  if (status == 0 && w->before(w->device)) {
    if (!uv_is_active(reinterpret_cast<uv_handle_t *>(&w->later))) uv_timer_start(&w->later, on_later, LATER_MS, 0);
  } else {
    uv_timer_stop(&w->later);
    call(w, status);
  }
  bool stopped = uv_is_closing(reinterpret_cast<uv_handle_t *>(&w->spin)) != 0;
  if (w->spin_ns == 0 || status < 0 || stopped) return;
  uint64_t time = uv_hrtime();
  if (!may_spin(time)) return;
  w->spin_until = time + w->spin_ns;
  uv_idle_start(&w->spin, on_spin);
}

int watch_start(Napi::Object owner, Napi::Function callback, int fd, int busy_poll_us,
                bool (*before)(void *), void *device, watch **slot) {
  Napi::Env env = owner.Env();
  uv_loop_t *loop;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) return UV_EINVAL;
  watch *w = new watch{{},
                       {},
                       {},
                       static_cast<uint64_t>(busy_poll_us) * 1000,
                       0,
                       before,
                       device,
                       3,
                       Napi::Persistent(owner),
                       Napi::Persistent(callback),
                       Napi::AsyncContext(env, "VTEP", owner),
                       nullptr,
                       slot};
  w->handle.data = w->spin.data = w->later.data = w;
  int error = uv_poll_init(loop, &w->handle, fd);
  if (error < 0) {
    release(w);
    return error;
  }
  uv_idle_init(loop, &w->spin);
  uv_timer_init(loop, &w->later);
  *slot = w;
  if (napi_add_async_cleanup_hook(env, on_environment_end, w, &w->hook) != napi_ok) {
    error = UV_ENOMEM;
  } else {
    error = uv_poll_start(&w->handle, UV_READABLE, on_poll);
  }
  if (error < 0) watch_stop(w);
  return error;
}
