// What JavaScript sees: argument checks and three classes. TypeScript (src/device) has validated and
// applied defaults already; the checks here are so that no mistake can become a crash.
//
// Mistakes throw TypeError (ERR_INVALID_ARG_TYPE), RangeError (ERR_OUT_OF_RANGE) or Error
// (ERR_CLOSED, ERR_WATCHED); what the system refuses throws Error with its `code` and `syscall`.
// V8 itself refuses a method whose `this` is of another class ("Illegal invocation").

#include <node_api.h>
#include <uv.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>

#include "checksum.h"
#include "layout.h"
#include "poll.h"
#include "tap.h"
#include "udp.h"

// A wrapped pointer is of the type that its object's tag says.
static const napi_type_tag BATCH_TAG = {0x7674657062617463, 0x6800000000000001};
static const napi_type_tag TAP_TAG = {0x7674657074617000, 0x6800000000000002};
static const napi_type_tag UDP_TAG = {0x7674657075647000, 0x6800000000000003};

struct shared_batch {
  batch memory;
  napi_ref columns, slab;
};

// A TAP queue or a UDP family, and its watch.
struct port {
  const napi_type_tag *tag;
  struct tap *tap;
  struct udp *udp;
  struct watch *watch;
  napi_ref remotes;
};

// ---- errors

static napi_value throw_type(napi_env env, const char *message) {
  napi_throw_type_error(env, "ERR_INVALID_ARG_TYPE", message);
  return nullptr;
}

static napi_value throw_range(napi_env env, const char *message) {
  napi_throw_range_error(env, "ERR_OUT_OF_RANGE", message);
  return nullptr;
}

static napi_value throw_closed(napi_env env) {
  napi_throw_error(env, "ERR_CLOSED", "used after close");
  return nullptr;
}

static void set_string(napi_env env, napi_value object, const char *name, const char *text) {
  napi_value value;
  if (napi_create_string_utf8(env, text, NAPI_AUTO_LENGTH, &value) == napi_ok) {
    napi_set_named_property(env, object, name, value);
  }
}

static napi_value throw_system(napi_env env, int error, const char *syscall) {
  char code[64], reason[128], message[256];
  uv_err_name_r(error, code, sizeof code);
  uv_strerror_r(error, reason, sizeof reason);
  snprintf(message, sizeof message, "%s: %s, %s", code, reason, syscall);
  napi_value code_value, message_value, exception;
  if (napi_create_string_utf8(env, code, NAPI_AUTO_LENGTH, &code_value) == napi_ok &&
      napi_create_string_utf8(env, message, NAPI_AUTO_LENGTH, &message_value) == napi_ok &&
      napi_create_error(env, code_value, message_value, &exception) == napi_ok) {
    set_string(env, exception, "syscall", syscall);
    napi_throw(env, exception);
  }
  return nullptr;
}

// ---- arguments

// Missing arguments read as undefined.
static bool get_arguments(napi_env env, napi_callback_info info, size_t count, napi_value *arguments,
                          napi_value *self) {
  return napi_get_cb_info(env, info, &count, arguments, self, nullptr) == napi_ok;
}

static bool is_type(napi_env env, napi_value value, napi_valuetype type) {
  napi_valuetype actual;
  return napi_typeof(env, value, &actual) == napi_ok && actual == type;
}

static bool get_int(napi_env env, napi_value value, const char *name, int low, int high, int *out) {
  char message[128];
  double number;
  if (!is_type(env, value, napi_number) || napi_get_value_double(env, value, &number) != napi_ok) {
    snprintf(message, sizeof message, "%s must be a number", name);
    return throw_type(env, message), false;
  }
  if (!(number >= low && number <= high) || number != std::floor(number)) {
    snprintf(message, sizeof message, "%s must be an integer from %d to %d", name, low, high);
    return throw_range(env, message), false;
  }
  *out = static_cast<int>(number);
  return true;
}

static bool get_string(napi_env env, napi_value value, const char *name, char *out, size_t size) {
  char message[128];
  size_t length;
  if (!is_type(env, value, napi_string) ||
      napi_get_value_string_utf8(env, value, nullptr, 0, &length) != napi_ok) {
    snprintf(message, sizeof message, "%s must be a string", name);
    return throw_type(env, message), false;
  }
  if (length == 0 || length >= size ||
      napi_get_value_string_utf8(env, value, out, size, &length) != napi_ok ||
      memchr(out, 0, length) != nullptr) {
    snprintf(message, sizeof message, "%s must be of 1 to %zu bytes, none of them zero", name,
             size - 1);
    return throw_range(env, message), false;
  }
  return true;
}

static bool get_bool(napi_env env, napi_value value, const char *name, bool *out) {
  if (napi_get_value_bool(env, value, out) == napi_ok) return true;
  char message[128];
  snprintf(message, sizeof message, "%s must be a boolean", name);
  return throw_type(env, message), false;
}

// A typed array over shared memory, which is where it is for as long as the array exists: an
// ArrayBuffer could be detached, or transferred to another thread and freed there.
static bool get_shared(napi_env env, napi_value value, const char *name, napi_typedarray_type type,
                       const char *type_name, size_t elements, bool exactly, void **data) {
  char message[128];
  bool is_array = false, is_unshared = true;
  napi_typedarray_type actual;
  size_t length;
  napi_value buffer;
  if (napi_is_typedarray(env, value, &is_array) != napi_ok || !is_array ||
      napi_get_typedarray_info(env, value, &actual, &length, data, &buffer, nullptr) != napi_ok ||
      actual != type || napi_is_arraybuffer(env, buffer, &is_unshared) != napi_ok || is_unshared) {
    snprintf(message, sizeof message, "%s must be a %s over a SharedArrayBuffer", name, type_name);
    return throw_type(env, message), false;
  }
  if (exactly ? length != elements : length < elements) {
    snprintf(message, sizeof message, "%s must have %s%zu elements", name,
             exactly ? "" : "at least ", elements);
    return throw_range(env, message), false;
  }
  return true;
}

static bool get_property(napi_env env, napi_value object, const char *name, napi_value *value) {
  return napi_get_named_property(env, object, name, value) == napi_ok;
}

static bool get_int_property(napi_env env, napi_value object, const char *name, int low, int high,
                             int *out) {
  napi_value value;
  return get_property(env, object, name, &value) && get_int(env, value, name, low, high, out);
}

static bool get_options(napi_env env, napi_value value) {
  if (is_type(env, value, napi_object)) return true;
  return throw_type(env, "options must be an object"), false;
}

static bool is_construction(napi_env env, napi_callback_info info) {
  napi_value target = nullptr;
  if (napi_get_new_target(env, info, &target) == napi_ok && target != nullptr) return true;
  napi_throw_type_error(env, "ERR_CONSTRUCT_CALL_REQUIRED", "the constructor needs 'new'");
  return false;
}

static void *unwrap(napi_env env, napi_value value, const napi_type_tag *tag) {
  bool same = false;
  void *data = nullptr;
  if (!is_type(env, value, napi_object) ||
      napi_check_object_type_tag(env, value, tag, &same) != napi_ok || !same ||
      napi_unwrap(env, value, &data) != napi_ok) {
    return nullptr;
  }
  return data;
}

static bool wrap(napi_env env, napi_value self, void *data, napi_finalize finalize,
                 const napi_type_tag *tag) {
  if (napi_wrap(env, self, data, finalize, nullptr, nullptr) != napi_ok) {
    finalize(env, data, nullptr);
    return napi_throw_error(env, nullptr, "the object is wrapped already"), false;
  }
  return napi_type_tag_object(env, self, tag) == napi_ok;
}

static napi_value int_value(napi_env env, int number) {
  napi_value value;
  return napi_create_int32(env, number, &value) == napi_ok ? value : nullptr;
}

// ---- Batch

static void batch_finalize(napi_env env, void *data, void *) {
  shared_batch *b = static_cast<shared_batch *>(data);
  if (b->columns != nullptr) napi_delete_reference(env, b->columns);
  if (b->slab != nullptr) napi_delete_reference(env, b->slab);
  delete b;
}

static napi_value batch_construct(napi_env env, napi_callback_info info) {
  napi_value arguments[2], self;
  void *columns, *slab;
  if (!is_construction(env, info) || !get_arguments(env, info, 2, arguments, &self) ||
      !get_shared(env, arguments[0], "columns", napi_int32_array, "Int32Array",
                  layout::COLUMN_WORDS, true, &columns) ||
      !get_shared(env, arguments[1], "slab", napi_uint8_array, "Uint8Array", layout::SLAB_BYTES,
                  true, &slab)) {
    return nullptr;
  }
  shared_batch *b = new (std::nothrow) shared_batch();
  if (b == nullptr) return throw_system(env, -ENOMEM, "new");
  b->memory = {static_cast<int32_t *>(columns), static_cast<uint8_t *>(slab)};
  if (napi_create_reference(env, arguments[0], 1, &b->columns) != napi_ok ||
      napi_create_reference(env, arguments[1], 1, &b->slab) != napi_ok) {
    batch_finalize(env, b, nullptr);
    return throw_system(env, -ENOMEM, "napi_create_reference");
  }
  return wrap(env, self, b, batch_finalize, &BATCH_TAG) ? self : nullptr;
}

static const batch *get_batch(napi_env env, napi_value value) {
  shared_batch *b = static_cast<shared_batch *>(unwrap(env, value, &BATCH_TAG));
  if (b != nullptr) return &b->memory;
  throw_type(env, "batch must be a Batch");
  return nullptr;
}

// ---- what Tap and Udp have in common

static void port_close(napi_env env, port *p) {
  if (p->watch != nullptr) watch_stop(p->watch);
  if (p->tap != nullptr) tap_close(p->tap);
  if (p->udp != nullptr) udp_close(p->udp);
  delete p->tap;
  delete p->udp;
  p->tap = nullptr;
  p->udp = nullptr;
  if (p->remotes != nullptr) napi_delete_reference(env, p->remotes);
  p->remotes = nullptr;
}

static void port_finalize(napi_env env, void *data, void *) {
  port *p = static_cast<port *>(data);
  port_close(env, p);
  delete p;
}

static int port_fd(const port *p) {
  if (p->tap != nullptr) return p->tap->fd;
  return p->udp != nullptr ? p->udp->fd : -1;
}

// The port, open or closed; `arguments` may be null.
static port *get_port(napi_env env, napi_callback_info info, size_t count, napi_value *arguments,
                      napi_value *self) {
  if (!get_arguments(env, info, count, arguments, self)) return nullptr;
  void *data = unwrap(env, *self, &TAP_TAG);
  if (data == nullptr) data = unwrap(env, *self, &UDP_TAG);
  if (data == nullptr) throw_type(env, "this must be a Tap or a Udp");
  return static_cast<port *>(data);
}

static tap *get_tap(napi_env env, napi_callback_info info, size_t count, napi_value *arguments) {
  napi_value self;
  if (!get_arguments(env, info, count, arguments, &self)) return nullptr;
  port *p = static_cast<port *>(unwrap(env, self, &TAP_TAG));
  if (p == nullptr) return throw_type(env, "this must be a Tap"), nullptr;
  if (p->tap == nullptr) throw_closed(env);
  return p->tap;
}

static udp *get_udp(napi_env env, napi_callback_info info, size_t count, napi_value *arguments) {
  napi_value self;
  if (!get_arguments(env, info, count, arguments, &self)) return nullptr;
  port *p = static_cast<port *>(unwrap(env, self, &UDP_TAG));
  if (p == nullptr) return throw_type(env, "this must be a Udp"), nullptr;
  if (p->udp == nullptr) throw_closed(env);
  return p->udp;
}

static napi_value method_close(napi_env env, napi_callback_info info) {
  napi_value self;
  port *p = get_port(env, info, 0, nullptr, &self);
  if (p != nullptr) port_close(env, p);
  return nullptr;
}

static napi_value method_fd(napi_env env, napi_callback_info info) {
  napi_value self;
  port *p = get_port(env, info, 0, nullptr, &self);
  return p == nullptr ? nullptr : int_value(env, port_fd(p));
}

static napi_value method_watch(napi_env env, napi_callback_info info) {
  napi_value callback, self;
  port *p = get_port(env, info, 1, &callback, &self);
  if (p == nullptr) return nullptr;
  if (!is_type(env, callback, napi_function)) {
    return throw_type(env, "onReadable must be a function");
  }
  if (port_fd(p) < 0) return throw_closed(env);
  if (p->watch != nullptr) return napi_throw_error(env, "ERR_WATCHED", "watched already"), nullptr;
  int error = watch_start(env, port_fd(p), self, callback, &p->watch);
  return error < 0 ? throw_system(env, error, "uv_poll_start") : nullptr;
}

static napi_value method_unwatch(napi_env env, napi_callback_info info) {
  napi_value self;
  port *p = get_port(env, info, 0, nullptr, &self);
  if (p != nullptr && p->watch != nullptr) watch_stop(p->watch);
  return nullptr;
}

// ---- Tap

static napi_value tap_construct(napi_env env, napi_callback_info info) {
  napi_value options, self, name_value, queue_value, kept_name;
  char name[IFNAMSIZ];
  int offloads;
  bool multi_queue;
  if (!is_construction(env, info) || !get_arguments(env, info, 1, &options, &self) ||
      !get_options(env, options) || !get_property(env, options, "name", &name_value) ||
      !get_string(env, name_value, "name", name, sizeof name) ||
      !get_int_property(env, options, "offloads", 0, 0xffff, &offloads) ||
      !get_property(env, options, "multiQueue", &queue_value) ||
      !get_bool(env, queue_value, "multiQueue", &multi_queue)) {
    return nullptr;
  }
  port *p = new (std::nothrow) port();
  tap *t = new (std::nothrow) tap();
  const char *syscall = "new";
  int error = p == nullptr || t == nullptr ? -ENOMEM : 0;
  if (error == 0) error = tap_open(t, name, static_cast<unsigned>(offloads), multi_queue, &syscall);
  if (error < 0) {
    delete t;
    delete p;
    return throw_system(env, error, syscall);
  }
  p->tap = t;
  if (!wrap(env, self, p, port_finalize, &TAP_TAG)) return nullptr;
  if (napi_create_string_utf8(env, t->name, NAPI_AUTO_LENGTH, &kept_name) == napi_ok) {
    napi_property_descriptor property = {"name",  nullptr,   nullptr,         nullptr,
                                         nullptr, kept_name, napi_enumerable, nullptr};
    napi_define_properties(env, self, 1, &property);
  }
  return self;
}

static napi_value method_read(napi_env env, napi_callback_info info) {
  napi_value argument;
  tap *t = get_tap(env, info, 1, &argument);
  const batch *b = t == nullptr ? nullptr : get_batch(env, argument);
  return b == nullptr ? nullptr : int_value(env, tap_read(t, b));
}

static napi_value method_write(napi_env env, napi_callback_info info) {
  napi_value arguments[3];
  int first, end;
  tap *t = get_tap(env, info, 3, arguments);
  const batch *b = t == nullptr ? nullptr : get_batch(env, arguments[0]);
  if (b == nullptr || !get_int(env, arguments[1], "first", 0, layout::OUT_ROWS, &first) ||
      !get_int(env, arguments[2], "end", first, layout::OUT_ROWS, &end)) {
    return nullptr;
  }
  return int_value(env, tap_write(t, b, first, end));
}

// ---- Udp

static bool get_source_ports(napi_env env, napi_value options, udp_options *o) {
  napi_value range, low, high;
  bool is_array = false;
  if (!get_property(env, options, "sourcePorts", &range)) return false;
  if (napi_is_array(env, range, &is_array) != napi_ok || !is_array) {
    return throw_type(env, "sourcePorts must be an array of two numbers"), false;
  }
  return napi_get_element(env, range, 0, &low) == napi_ok &&
         napi_get_element(env, range, 1, &high) == napi_ok &&
         get_int(env, low, "sourcePorts[0]", 1, 65535, &o->source_port_low) &&
         get_int(env, high, "sourcePorts[1]", o->source_port_low, 65535, &o->source_port_high);
}

static napi_value udp_construct(napi_env env, napi_callback_info info) {
  napi_value options, self, address_value, remotes_value;
  char address[INET6_ADDRSTRLEN + IFNAMSIZ];
  udp_options o = {};
  void *remotes;
  if (!is_construction(env, info) || !get_arguments(env, info, 1, &options, &self) ||
      !get_options(env, options) ||
      !get_int_property(env, options, "family", 4, 6, &o.family) ||
      !get_property(env, options, "address", &address_value) ||
      !get_string(env, address_value, "address", address, sizeof address) ||
      !get_int_property(env, options, "port", 1, 65535, &o.port) ||
      !get_source_ports(env, options, &o) ||
      !get_int_property(env, options, "fan", 1, MAX_FAN, &o.fan) ||
      !get_int_property(env, options, "slotBytes", 1, MAX_SLOT, &o.slot_bytes) ||
      !get_int_property(env, options, "receiveBuffer", 0, 1 << 30, &o.receive_buffer) ||
      !get_int_property(env, options, "sendBuffer", 0, 1 << 30, &o.send_buffer) ||
      !get_property(env, options, "remotes", &remotes_value) ||
      !get_shared(env, remotes_value, "remotes", napi_int32_array, "Int32Array",
                  layout::REMOTE_ROWS * layout::REMOTE_WORDS, false, &remotes)) {
    return nullptr;
  }
  if (o.family == 5) return throw_range(env, "family must be 4 or 6");
  o.address = address;
  o.remotes = static_cast<const int32_t *>(remotes);

  port *p = new (std::nothrow) port();
  udp *u = new (std::nothrow) udp;
  const char *syscall = "new";
  int error = p == nullptr || u == nullptr ? -ENOMEM : udp_open(u, &o, &syscall);
  if (error < 0) {
    delete u;
    delete p;
    return throw_system(env, error, syscall);
  }
  p->udp = u;
  if (napi_create_reference(env, remotes_value, 1, &p->remotes) != napi_ok) {
    port_finalize(env, p, nullptr);
    return throw_system(env, -ENOMEM, "napi_create_reference");
  }
  return wrap(env, self, p, port_finalize, &UDP_TAG) ? self : nullptr;
}

static napi_value method_receive(napi_env env, napi_callback_info info) {
  napi_value argument;
  udp *u = get_udp(env, info, 1, &argument);
  const batch *b = u == nullptr ? nullptr : get_batch(env, argument);
  return b == nullptr ? nullptr : int_value(env, udp_receive(u, b));
}

static napi_value method_send(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  int count;
  udp *u = get_udp(env, info, 2, arguments);
  const batch *b = u == nullptr ? nullptr : get_batch(env, arguments[0]);
  if (b == nullptr || !get_int(env, arguments[1], "count", 0, layout::OUT_ROWS, &count)) {
    return nullptr;
  }
  return int_value(env, udp_send(u, b, count));
}

static napi_value method_overflows(napi_env env, napi_callback_info info) {
  udp *u = get_udp(env, info, 0, nullptr);
  napi_value value;
  if (u == nullptr || napi_create_uint32(env, udp_drops(u), &value) != napi_ok) return nullptr;
  return value;
}

// ---- completeChecksum(frame, csumStart, csumOffset), for cross-checks in tests

static napi_value complete_checksum(napi_env env, napi_callback_info info) {
  napi_value arguments[3], self, buffer;
  bool is_array = false;
  napi_typedarray_type type;
  size_t length;
  void *frame;
  int start, offset;
  if (!get_arguments(env, info, 3, arguments, &self)) return nullptr;
  if (napi_is_typedarray(env, arguments[0], &is_array) != napi_ok || !is_array ||
      napi_get_typedarray_info(env, arguments[0], &type, &length, &frame, &buffer, nullptr) !=
          napi_ok ||
      type != napi_uint8_array) {
    return throw_type(env, "frame must be a Uint8Array");
  }
  if (!get_int(env, arguments[1], "csumStart", 0, 65535, &start) ||
      !get_int(env, arguments[2], "csumOffset", 0, 65535, &offset)) {
    return nullptr;
  }
  return int_value(env, checksum_complete(static_cast<uint8_t *>(frame), length,
                                          static_cast<size_t>(start), static_cast<size_t>(offset)));
}

// ---- the module

static napi_property_descriptor method(const char *name, napi_callback call) {
  return {name, nullptr, call, nullptr, nullptr, nullptr, napi_default_method, nullptr};
}

static bool export_layout(napi_env env, napi_value exports) {
  static const struct {
    const char *name;
    int32_t value;
  } numbers[] = {
#define X(name, value) {#name, layout::name},
      VTEP_LAYOUT(X)
#undef X
  };
  napi_value object;
  if (napi_create_object(env, &object) != napi_ok) return false;
  for (const auto &number : numbers) {
    napi_value value = int_value(env, number.value);
    if (napi_set_named_property(env, object, number.name, value) != napi_ok) return false;
  }
  return napi_set_named_property(env, exports, "layout", object) == napi_ok;
}

static bool export_class(napi_env env, napi_value exports, const char *name, napi_callback construct,
                         size_t count, const napi_property_descriptor *methods) {
  napi_value constructor;
  return napi_define_class(env, name, NAPI_AUTO_LENGTH, construct, nullptr, count, methods,
                           &constructor) == napi_ok &&
         napi_set_named_property(env, exports, name, constructor) == napi_ok;
}

static bool export_function(napi_env env, napi_value exports, const char *name, napi_callback call) {
  napi_value function;
  return napi_create_function(env, name, NAPI_AUTO_LENGTH, call, nullptr, &function) == napi_ok &&
         napi_set_named_property(env, exports, name, function) == napi_ok;
}

NAPI_MODULE_INIT() {
  const napi_property_descriptor tap_methods[] = {
      method("read", method_read),       method("write", method_write),
      method("watch", method_watch),     method("unwatch", method_unwatch),
      method("fd", method_fd),           method("close", method_close)};
  const napi_property_descriptor udp_methods[] = {
      method("receive", method_receive), method("send", method_send),
      method("watch", method_watch),     method("unwatch", method_unwatch),
      method("fd", method_fd),           method("close", method_close),
      method("overflows", method_overflows)};
  bool exported = export_layout(env, exports) &&
                  export_class(env, exports, "Batch", batch_construct, 0, nullptr) &&
                  export_class(env, exports, "Tap", tap_construct, 6, tap_methods) &&
                  export_class(env, exports, "Udp", udp_construct, 7, udp_methods) &&
                  export_function(env, exports, "completeChecksum", complete_checksum);
  if (!exported) napi_throw_error(env, nullptr, "the addon could not define its classes");
  return exports;
}
