#include "poll.h"

#include <uv.h>

#include <new>

struct watch {
  uv_poll_t handle;
  napi_env env;
  napi_ref owner;
  napi_ref callback;
  napi_async_context context;
  napi_async_cleanup_hook_handle hook;
  watch **slot;
};

static void release(watch *w) {
  napi_handle_scope scope;
  bool scoped = napi_open_handle_scope(w->env, &scope) == napi_ok;
  if (w->context != nullptr) napi_async_destroy(w->env, w->context);
  if (w->callback != nullptr) napi_delete_reference(w->env, w->callback);
  if (w->owner != nullptr) napi_delete_reference(w->env, w->owner);
  if (scoped) napi_close_handle_scope(w->env, scope);
  // Last, because the environment may be waiting for just this.
  if (w->hook != nullptr) napi_remove_async_cleanup_hook(w->hook);
  delete w;
}

static void on_closed(uv_handle_t *handle) { release(static_cast<watch *>(handle->data)); }

void watch_stop(watch *w) {
  *w->slot = nullptr;
  uv_close(reinterpret_cast<uv_handle_t *>(&w->handle), on_closed);
}

static void on_environment_end(napi_async_cleanup_hook_handle, void *data) {
  watch *w = static_cast<watch *>(data);
  if (!uv_is_closing(reinterpret_cast<uv_handle_t *>(&w->handle))) watch_stop(w);
}

// The callback may stop this watch, or throw: then it is an uncaught exception like any other's.
// When the environment is ending JavaScript cannot run, and nothing is to be told.
static void on_poll(uv_poll_t *handle, int status, int) {
  const watch *w = static_cast<watch *>(handle->data);  // which lives until the loop comes round
  napi_env env = w->env;
  napi_handle_scope scope;
  if (napi_open_handle_scope(env, &scope) != napi_ok) return;
  napi_value owner, callback, argument, exception;
  bool pending = false;
  if (napi_get_reference_value(env, w->owner, &owner) == napi_ok &&
      napi_get_reference_value(env, w->callback, &callback) == napi_ok &&
      napi_create_int32(env, status, &argument) == napi_ok) {
    napi_make_callback(env, w->context, owner, callback, 1, &argument, nullptr);
  }
  if (napi_is_exception_pending(env, &pending) == napi_ok && pending &&
      napi_get_and_clear_last_exception(env, &exception) == napi_ok) {
    napi_fatal_exception(env, exception);
  }
  napi_close_handle_scope(env, scope);
}

static bool prepare(watch *w, napi_value owner, napi_value callback) {
  napi_value name;
  return napi_create_string_utf8(w->env, "VTEP", NAPI_AUTO_LENGTH, &name) == napi_ok &&
         napi_create_reference(w->env, owner, 1, &w->owner) == napi_ok &&
         napi_create_reference(w->env, callback, 1, &w->callback) == napi_ok &&
         napi_async_init(w->env, owner, name, &w->context) == napi_ok;
}

int watch_start(napi_env env, int fd, napi_value owner, napi_value callback, watch **slot) {
  uv_loop_t *loop;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) return UV_EINVAL;
  watch *w = new (std::nothrow) watch();
  if (w == nullptr) return UV_ENOMEM;
  w->env = env;
  w->slot = slot;
  w->handle.data = w;
  int error = prepare(w, owner, callback) ? uv_poll_init(loop, &w->handle, fd) : UV_ENOMEM;
  if (error < 0) {
    release(w);
    return error;
  }
  *slot = w;
  if (napi_add_async_cleanup_hook(env, on_environment_end, w, &w->hook) != napi_ok) {
    error = UV_ENOMEM;
  } else {
    error = uv_poll_start(&w->handle, UV_READABLE, on_poll);
  }
  if (error < 0) watch_stop(w);
  return error;
}
