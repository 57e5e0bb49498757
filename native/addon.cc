// What JavaScript sees: argument checks and four classes. TypeScript (src/device) has validated and
// applied defaults already; the checks here are so that no mistake can become a crash.
//
// Mistakes throw TypeError (ERR_INVALID_ARG_TYPE), RangeError (ERR_OUT_OF_RANGE) or Error
// (ERR_CLOSED, ERR_WATCHED); what the system refuses throws Error with its `code` and `syscall`.
// V8 itself refuses a method whose `this` is of another class ("Illegal invocation").
//
// Nothing is kept per environment but what lives in its thread, so any number of workers may load
// this. There are no C++ exceptions: a call of the library that fails leaves an exception pending,
// and returns what is empty. One mistake is fatal to it: a getter of the options that the timeout of
// node:vm stops.

#include <fcntl.h>
#include <napi.h>
#include <uv.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cmath>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "checksum.h"
#include "coalesce.h"
#include "flows.h"
#include "layout.h"
#include "notify.h"
#include "pace.h"
#include "poll.h"
#include "pure.h"
#include "steering.h"
#include "tap.h"
#include "tap_set.h"
#include "udp.h"

// ---- errors

// Throws, unless an exception is pending: a getter's own, say. Returns false, as a failed check does.
static bool throw_error(const Napi::Error &error, const char *code) {
  if (!error.Env().IsExceptionPending()) {
    error.Set("code", code);
    error.ThrowAsJavaScriptException();
  }
  return false;
}

static bool throw_type(Napi::Env env, const std::string &message) {
  return throw_error(Napi::TypeError::New(env, message), "ERR_INVALID_ARG_TYPE");
}

static bool throw_closed(Napi::Env env) {
  return throw_error(Napi::Error::New(env, "used after close"), "ERR_CLOSED");
}

static bool throw_range(Napi::Env env, const std::string &message) {
  return throw_error(Napi::RangeError::New(env, message), "ERR_OUT_OF_RANGE");
}

static void throw_system(Napi::Env env, int error, const char *syscall) {
  char code[64], reason[128];
  uv_err_name_r(error, code, sizeof code);
  uv_strerror_r(error, reason, sizeof reason);
  Napi::Error e = Napi::Error::New(env, std::string(code) + ": " + reason + ", " + syscall);
  e.Set("code", code);
  e.Set("syscall", syscall);
  e.ThrowAsJavaScriptException();
}

// ---- arguments

static bool get_int(Napi::Env env, Napi::Value value, const char *name, int low, int high,
                    int *out) {
  double number;
  if (napi_get_value_double(env, value, &number) != napi_ok) {
    return throw_type(env, std::string(name) + " must be a number");
  }
  if (!(number >= low && number <= high) || number != std::floor(number)) {
    return throw_range(env, std::string(name) + " must be an integer from " + std::to_string(low) +
                                " to " + std::to_string(high));
  }
  *out = static_cast<int>(number);
  return true;
}

// A typed array over shared memory, which is where it is for as long as the array exists: an
// ArrayBuffer could be detached, or transferred to another thread and freed there.
template <class word>
static bool get_shared(Napi::Env env, Napi::Value value, const char *name, size_t elements,
                       bool exactly, word **out) {
  constexpr bool bytes = sizeof(word) == 1;
  Napi::TypedArrayOf<word> array;
  if (value.IsTypedArray()) array = value.As<Napi::TypedArrayOf<word>>();
  if (array.IsEmpty() ||
      array.TypedArrayType() != (bytes ? napi_uint8_array : napi_int32_array) ||
      array.Buffer().IsArrayBuffer()) {
    return throw_type(env, std::string(name) + " must be " +
                               (bytes ? "a Uint8Array" : "an Int32Array") +
                               " over a SharedArrayBuffer");
  }
  if (exactly ? array.ElementLength() != elements : array.ElementLength() < elements) {
    return throw_range(env, std::string(name) + " must have " + (exactly ? "" : "at least ") +
                                std::to_string(elements) + " elements");
  }
  *out = array.Data();
  return true;
}

static bool get_options(const Napi::CallbackInfo &info, Napi::Object *out) {
  if (info[0].Type() != napi_object) return throw_type(info.Env(), "options must be an object");
  *out = info[0].As<Napi::Object>();
  return true;
}

static bool get_int(Napi::Object options, const char *name, int low, int high, int *out) {
  return get_int(options.Env(), options.Get(name), name, low, high, out);
}

static bool get_bool(Napi::Object options, const char *name, bool *out) {
  Napi::Value value = options.Get(name);
  if (!value.IsBoolean()) {
    return throw_type(options.Env(), std::string(name) + " must be a boolean");
  }
  *out = value.As<Napi::Boolean>();
  return true;
}

static bool get_string(Napi::Object options, const char *name, size_t size, std::string *out) {
  Napi::Value value = options.Get(name);
  if (!value.IsString()) {
    return throw_type(options.Env(), std::string(name) + " must be a string");
  }
  *out = value.As<Napi::String>();
  if (!out->empty() && out->size() < size && out->find('\0') == std::string::npos) return true;
  return throw_range(options.Env(), std::string(name) + " must be of 1 to " +
                                        std::to_string(size - 1) + " bytes, none of them zero");
}

// ---- what all classes have in common

// What an object of JavaScript wraps is a T if it is one of those that live in this thread. A type tag would
// say so as well, but takes a third of every call.
template <class T>
class object : public Napi::ObjectWrap<T> {
  static inline thread_local std::unordered_set<const void *> living;

 public:
  explicit object(const Napi::CallbackInfo &info) : Napi::ObjectWrap<T>(info) {
    living.insert(static_cast<T *>(this));
  }
  ~object() override { living.erase(static_cast<T *>(this)); }

  static T *from(Napi::Value value, const char *what) {
    void *wrapped = nullptr;
    if (napi_unwrap(value.Env(), value, &wrapped) == napi_ok && living.count(wrapped) > 0) {
      return static_cast<T *>(wrapped);
    }
    throw_type(value.Env(), std::string(what) + " must be a " + T::NAME);
    return nullptr;
  }

  // The library calls these two: before every method, and for want of `new`.
  static T *Unwrap(Napi::Object self) { return from(self, "this"); }

  static Napi::Value OnCalledAsFunction(const Napi::CallbackInfo &info) {
    throw_error(Napi::TypeError::New(info.Env(), "the constructor needs 'new'"),
                "ERR_CONSTRUCT_CALL_REQUIRED");
    return Napi::Value();
  }

  // For DefineClass: a method with the attributes that `class` would give it.
  template <class function>
  static auto method(const char *name, function call) {
    return T::InstanceMethod(name, call, napi_default_method);
  }
};

// What is needed for every batch that is moved can have a number, too: to unwrap an object is to look up a property
// of it, 0.3 us each time and more when that is not in the caches. No number is given twice in a thread.
template <class T>
class numbered : public object<T> {
  static inline thread_local std::vector<T *> living;

 public:
  using object<T>::object;
  ~numbered() override {
    if (number < living.size()) living[number] = nullptr;
  }

  // Null if that object is no more, or never was.
  static T *at(size_t number) { return number < living.size() ? living[number] : nullptr; }

 protected:
  // The last act of a constructor: from then on whoever guesses the number has the object.
  size_t take_number() {
    number = living.size();
    living.push_back(static_cast<T *>(this));
    return number;
  }

 private:
  size_t number = SIZE_MAX;
};

// ---- Batch

class Batch : public numbered<Batch> {
 public:
  static constexpr const char *NAME = "Batch";

  batch memory = {};

  explicit Batch(const Napi::CallbackInfo &info) : numbered(info) {
    Napi::Env env = info.Env();
    if (!get_shared(env, info[0], "columns", layout::COLUMN_WORDS, true, &memory.columns) ||
        !get_shared(env, info[1], "slab", layout::SLAB_BYTES, true, &memory.slab)) {
      return;
    }
    trains = std::make_unique<coalescer>();
    memory.trains = trains.get();
    columns = Napi::Persistent(info[0].As<Napi::Object>());
    slab = Napi::Persistent(info[1].As<Napi::Object>());
    info.This().As<Napi::Object>().DefineProperty(Napi::PropertyDescriptor::Value(
        "number", Napi::Number::New(env, static_cast<double>(take_number())), napi_enumerable));
  }

  static Napi::Function define(Napi::Env env) { return DefineClass(env, NAME, {}); }

 private:
  Napi::ObjectReference columns, slab;
  std::unique_ptr<coalescer> trains;
};

// ---- FlowTable

class FlowTable : public object<FlowTable> {
 public:
  static constexpr const char *NAME = "FlowTable";

  std::shared_ptr<flow_table> table;

  explicit FlowTable(const Napi::CallbackInfo &info) : object(info) {
    int32_t *words = nullptr;
    if (!get_shared(info.Env(), info[0], "guards", 4, false, &words)) return;
    guards = Napi::Persistent(info[0].As<Napi::Object>());
    table = std::make_shared<flow_table>();
    table->guards = words;
    size_t length = info[0].As<Napi::Int32Array>().ElementLength();
    table->guard_words = static_cast<int32_t>(std::min<size_t>(length, INT32_MAX));
  }

  void forget(const Napi::CallbackInfo &) { flows_forget(table.get()); }

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, NAME, {method("forget", &FlowTable::forget)});
  }

 private:
  Napi::ObjectReference guards;
};

// ---- what Tap, Taps and Udp have in common: a device, and its watch if it has one

struct closer {
  void operator()(tap *t) const {
    tap_close(t);
    delete t;
  }
  void operator()(tap_set *s) const {
    tap_set_close(s);
    delete s;
  }
  void operator()(udp *u) const {
    udp_close(u);
    delete u;
  }
};

static bool move_first(tap_set *s) { return flows_move_from_taps(s->flows); }
static bool move_first(udp *u) { return flows_move_from_underlay(u->flows, u); }

template <class nic>
static bool before_callback(void *device) {
  nic *n = static_cast<nic *>(device);
  return n->flows != nullptr && move_first(n);
}

template <class T, class nic>
class port : public numbered<T> {
 public:
  using numbered<T>::numbered;
  ~port() override { shut(); }

  void close(const Napi::CallbackInfo &) { shut(); }

  Napi::Value fd(const Napi::CallbackInfo &info) {
    return Napi::Number::New(info.Env(), device != nullptr ? device->fd : -1);
  }

  void watch(const Napi::CallbackInfo &info) {
    Napi::Env env = info.Env();
    int busy_poll_us = 0;
    if (!info[0].IsFunction()) {
      throw_type(env, "onReadable must be a function");
    } else if (!info[1].IsUndefined() && !get_int(env, info[1], "busyPollUs", 0, 1'000'000, &busy_poll_us)) {
      return;
    } else if (watched != nullptr) {
      throw_error(Napi::Error::New(env, "watched already"), "ERR_WATCHED");
    } else if (is_open(env)) {
      int error = watch_start(info.This().As<Napi::Object>(), info[0].As<Napi::Function>(),
                              device->fd, busy_poll_us, before_callback<nic>, device.get(), &watched);
      if (error < 0) throw_system(env, error, "uv_poll_start");
    }
  }

  void unwatch(const Napi::CallbackInfo &) {
    if (watched != nullptr) watch_stop(watched);
  }

 protected:
  std::shared_ptr<flow_table> flows;    // if it has any
  Napi::ObjectReference kept;           // whose they are
  std::unique_ptr<nic, closer> device;  // null after close
  Napi::ObjectReference memory;         // what the device points to

  // Undefined or a FlowTable.
  bool get_flows(Napi::Value value) {
    if (value.IsUndefined()) return true;
    const FlowTable *given = FlowTable::from(value, "flows");
    if (given == nullptr || given->table == nullptr) return false;
    flows = given->table;
    kept = Napi::Persistent(value.As<Napi::Object>());
    return true;
  }

  bool is_open(Napi::Env env) const {
    return device != nullptr || throw_closed(env);
  }

  // What moves batches is no method, but a function of the object's own, to which `this` is of no account.
  template <Napi::Value (*move)(const Napi::CallbackInfo &)>
  static Napi::PropertyDescriptor own(Napi::Env env, const char *name, size_t number) {
    Napi::Function function = Napi::Function::New<move>(env, name, reinterpret_cast<void *>(number));
    return Napi::PropertyDescriptor::Value(name, function, napi_enumerable);
  }

  // (batch) → rows filled, or -errno
  template <int (*fill)(nic *, const batch *)>
  static Napi::Value fill_rows(const Napi::CallbackInfo &info) {
    nic *n = nic_of(info);
    const batch *b = n == nullptr ? nullptr : batch_of(info);
    return b == nullptr ? Napi::Value() : integer(info.Env(), fill(n, b));
  }

  // (batch, count) → what became of that many rows, as a number
  template <int (*take)(nic *, const batch *, int)>
  static Napi::Value take_rows(const Napi::CallbackInfo &info) {
    nic *n = nic_of(info);
    const batch *b = n == nullptr ? nullptr : batch_of(info);
    int count = 0;
    if (b == nullptr || !get_int(info.Env(), info[1], "count", 0, layout::OUT_ROWS, &count)) return Napi::Value();
    return integer(info.Env(), take(n, b, count));
  }

 private:
  struct watch *watched = nullptr;

  static Napi::Value integer(Napi::Env env, int32_t number) {
    napi_value value = nullptr;
    napi_create_int32(env, number, &value);
    return Napi::Value(env, value);
  }

  static nic *nic_of(const Napi::CallbackInfo &info) {
    T *owner = T::at(reinterpret_cast<size_t>(info.Data()));
    if (owner != nullptr && owner->device != nullptr) return owner->device.get();
    throw_closed(info.Env());
    return nullptr;
  }

  static const batch *batch_of(const Napi::CallbackInfo &info) {
    double number;
    bool is_number = napi_get_value_double(info.Env(), info[0], &number) == napi_ok;
    bool is_index = is_number && number >= 0 && number <= UINT32_MAX && number == std::floor(number);
    const Batch *b = is_index ? Batch::at(static_cast<size_t>(number)) : nullptr;
    if (b != nullptr) return &b->memory;
    throw_type(info.Env(), "batch must be the number of a Batch");
    return nullptr;
  }

  void shut() {
    if (watched != nullptr) watch_stop(watched);
    device.reset();
    memory.Reset();
  }
};

// ---- Tap

class Tap : public port<Tap, tap> {
 public:
  static constexpr const char *NAME = "Tap";

  explicit Tap(const Napi::CallbackInfo &info) : port(info) {
    Napi::Env env = info.Env();
    Napi::Object options;
    std::string name;
    tap_options wanted = {};
    int fd = -1;
    device.reset(new tap);
    if (!get_options(info, &options) || !get_string(options, "name", IFNAMSIZ, &name) ||
        !get_int(options, "fd", -1, INT_MAX, &fd) ||
        !get_bool(options, "multiQueue", &wanted.multi_queue) ||
        !get_int(options, "furtherQueues", 0, MOST_FURTHER_QUEUES, &wanted.further_queues) ||
        !get_bool(options, "coalesceTcp", &device->coalesce_tcp) ||
        !get_bool(options, "coalesceUdp", &device->coalesce_udp)) {
      return;
    }
    wanted.name = name.c_str();
    const char *syscall;
    int error = fd < 0 ? tap_open(device.get(), &wanted, &syscall)
                       : tap_adopt(device.get(), fd, &wanted, &syscall);
    if (error < 0) {
      throw_system(env, error, syscall);
      return;
    }
    info.This().As<Napi::Object>().DefineProperty(Napi::PropertyDescriptor::Value(
        "name", Napi::String::New(env, device->name), napi_enumerable));
  }

  Napi::Value set_offloads(const Napi::CallbackInfo &info) {
    Napi::Env env = info.Env();
    int offloads = 0;
    if (!is_open(env) || !get_int(env, info[0], "offloads", 0, 0xffff, &offloads)) {
      return Napi::Value();
    }
    return Napi::Number::New(env,
                             tap_use_offloads(device.get(), static_cast<unsigned>(offloads)));
  }

  Napi::Value coalesces(const Napi::CallbackInfo &info) {
    if (!is_open(info.Env())) return Napi::Value();
    Napi::Object kinds = Napi::Object::New(info.Env());
    kinds.Set("tcp", device->coalesce_tcp);
    kinds.Set("udp", device->coalesce_udp);
    return kinds;
  }

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, NAME,
                       {method("setOffloads", &Tap::set_offloads),
                        method("coalesces", &Tap::coalesces), method("fd", &Tap::fd),
                        method("close", &Tap::close)});
  }

  // Null, and an exception is pending, after close.
  tap *queue(Napi::Env env) const { return is_open(env) ? device.get() : nullptr; }
};

// ---- Taps

class Taps : public port<Taps, tap_set> {
 public:
  static constexpr const char *NAME = "Taps";

  explicit Taps(const Napi::CallbackInfo &info) : port(info) {
    if (!get_flows(info[0])) return;
    device.reset(new tap_set{});
    int error = tap_set_open(device.get());
    if (error < 0) {
      throw_system(info.Env(), error, "epoll_create1");
      return;
    }
    device->flows = flows.get();
    if (flows != nullptr) flows->taps = device.get();
    Napi::Env env = info.Env();
    size_t number = take_number();
    info.This().As<Napi::Object>().DefineProperties({own<fill_rows<tap_set_read>>(env, "read", number),
                                                     own<take_rows<tap_set_write>>(env, "write", number)});
  }

  void add(const Napi::CallbackInfo &info) {
    Napi::Env env = info.Env();
    int slot = 0;
    Tap *tap = nullptr;
    struct tap *queue = nullptr;
    if (!is_open(env) || !get_int(env, info[0], "slot", 0, MAX_SLOT_NUMBER, &slot) ||
        (tap = Tap::from(info[1], "tap")) == nullptr || (queue = tap->queue(env)) == nullptr) {
      return;
    }
    int error = tap_set_add(device.get(), slot, queue);
    if (error < 0) throw_system(env, error, "epoll_ctl");
  }

  void gather(const Napi::CallbackInfo &info) {
    if (is_open(info.Env())) tap_set_gather(device.get());
  }

  void limit(const Napi::CallbackInfo &info) {
    Napi::Env env = info.Env();
    int slot = 0, frames = 0;
    if (!is_open(env) || !get_int(env, info[0], "slot", 0, MAX_SLOT_NUMBER, &slot) ||
        !get_int(env, info[1], "frames", 1, layout::IN_ROWS, &frames)) {
      return;
    }
    tap_set_limit(device.get(), slot, frames);
  }

  void remove(const Napi::CallbackInfo &info) {
    Napi::Env env = info.Env();
    int slot = 0;
    if (!is_open(env) || !get_int(env, info[0], "slot", 0, MAX_SLOT_NUMBER, &slot)) return;
    tap_set_remove(device.get(), slot);
  }

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, NAME,
                       {method("add", &Taps::add), method("remove", &Taps::remove),
                        method("gather", &Taps::gather), method("limit", &Taps::limit), method("watch", &Taps::watch),
                        method("unwatch", &Taps::unwatch), method("fd", &Taps::fd), method("close", &Taps::close)});
  }
};

// ---- Udp

static bool get_source_ports(Napi::Object options, int *low, int *high) {
  Napi::Env env = options.Env();
  Napi::Value value = options.Get("sourcePorts");
  if (!value.IsArray()) return throw_type(env, "sourcePorts must be an array of two numbers");
  Napi::Array range = value.As<Napi::Array>();
  return get_int(env, range.Get(0u), "sourcePorts[0]", 1, 65535, low) &&
         get_int(env, range.Get(1u), "sourcePorts[1]", *low, 65535, high);
}

class Udp : public port<Udp, udp> {
 public:
  static constexpr const char *NAME = "Udp";

  explicit Udp(const Napi::CallbackInfo &info) : port(info) {
    Napi::Env env = info.Env();
    Napi::Object options;
    std::string address;
    udp_options o = {};
    int32_t *remotes = nullptr;
    if (!get_options(info, &options) || !get_int(options, "family", 4, 6, &o.family) ||
        !get_string(options, "address", INET6_ADDRSTRLEN + IFNAMSIZ, &address) ||
        !get_int(options, "port", 1, 65535, &o.port) ||
        !get_source_ports(options, &o.source_port_low, &o.source_port_high) ||
        !get_int(options, "fd", -1, INT_MAX, &o.fd) ||
        !get_int(options, "sharer", -1, 255, &o.sharer) ||
        !get_int(options, "fan", 1, MAX_FAN, &o.fan) ||
        !get_int(options, "slotBytes", 1, MAX_SLOT, &o.slot_bytes) ||
        !get_int(options, "receiveBuffer", 0, 1 << 30, &o.receive_buffer) ||
        !get_int(options, "sendBuffer", 0, 1 << 30, &o.send_buffer) ||
        !get_bool(options, "whole", &o.whole) ||
        !get_bool(options, "segment", &o.segment) || !get_bool(options, "coalesce", &o.coalesce)) {
      return;
    }
    Napi::Value remotes_value = options.Get("remotes");
    if (!get_shared(env, remotes_value, "remotes", layout::REMOTE_REFUSED + layout::REMOTE_ROWS,
                    false, &remotes)) {
      return;
    }
    if (o.family == 5) {
      throw_range(env, "family must be 4 or 6");
      return;
    }
    if (!get_flows(options.Get("flows"))) return;
    o.address = address.c_str();
    o.remotes = remotes;

    const char *syscall;
    device.reset(new udp);
    int error = udp_open(device.get(), &o, &syscall);
    if (error < 0) {
      throw_system(env, error, syscall);
      return;
    }
    device->flows = flows.get();
    if (flows != nullptr) flows->underlays++;
    memory = Napi::Persistent(remotes_value.As<Napi::Object>());
    size_t number = take_number();
    info.This().As<Napi::Object>().DefineProperties({own<fill_rows<udp_receive>>(env, "receive", number),
                                                     own<take_rows<udp_send>>(env, "send", number)});
  }

  Napi::Value overflows(const Napi::CallbackInfo &info) {
    if (!is_open(info.Env())) return Napi::Value();
    return Napi::Number::New(info.Env(), udp_drops(device.get()));
  }

  Napi::Value refusals(const Napi::CallbackInfo &info) {
    if (!is_open(info.Env())) return Napi::Value();
    return Napi::Number::New(info.Env(), udp_refusals(device.get()));
  }

  Napi::Value trains(const Napi::CallbackInfo &info) {
    if (!is_open(info.Env())) return Napi::Value();
    Napi::Object trains = Napi::Object::New(info.Env());
    trains.Set("segment", device->segments);
    trains.Set("coalesce", device->coalesces);
    return trains;
  }

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, NAME,
                       {method("trains", &Udp::trains),
                        method("watch", &Udp::watch), method("unwatch", &Udp::unwatch),
                        method("fd", &Udp::fd), method("close", &Udp::close),
                        method("overflows", &Udp::overflows),
                        method("refusals", &Udp::refusals)});
  }
};

// ---- completeChecksum(frame, csumStart, csumOffset), for cross-checks in tests

static Napi::Value complete_checksum(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  Napi::Uint8Array frame;
  int start = 0, offset = 0;
  if (info[0].IsTypedArray()) frame = info[0].As<Napi::Uint8Array>();
  if (frame.IsEmpty() || frame.TypedArrayType() != napi_uint8_array) {
    throw_type(env, "frame must be a Uint8Array");
    return Napi::Value();
  }
  if (!get_int(env, info[1], "csumStart", 0, 65535, &start) ||
      !get_int(env, info[2], "csumOffset", 0, 65535, &offset)) {
    return Napi::Value();
  }
  return Napi::Number::New(env, checksum_complete(frame.Data(), frame.ElementLength(),
                                                  static_cast<size_t>(start),
                                                  static_cast<size_t>(offset)));
}

// canSteer() → 0 or -errno
static Napi::Value can_steer_flows(const Napi::CallbackInfo &info) {
  return Napi::Number::New(info.Env(), can_steer());
}

// tapDemotions() → how often a kind of super-frame was refused
static Napi::Value count_tap_demotions(const Napi::CallbackInfo &info) {
  return Napi::Number::New(info.Env(), tap_demotions());
}

// paceBegin() → 0 or -errno
static Napi::Value begin_pace(const Napi::CallbackInfo &info) {
  return Napi::Number::New(info.Env(), pace_begin());
}

// paceTick() → seconds asleep
static Napi::Value tick_pace(const Napi::CallbackInfo &info) {
  return Napi::Number::New(info.Env(), pace_tick());
}

// duplicate(descriptor) → another descriptor of the same file
static Napi::Value duplicate(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  int fd = -1;
  if (!get_int(env, info[0], "descriptor", 0, INT_MAX, &fd)) return Napi::Value();
  int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy >= 0) return Napi::Number::New(env, copy);
  throw_system(env, -errno, "fcntl(F_DUPFD_CLOEXEC)");
  return Napi::Value();
}

// ---- the module

static Napi::Object init(Napi::Env env, Napi::Object exports) {
  Napi::Object numbers = Napi::Object::New(env);
#define X(name, value) numbers.Set(#name, layout::name);
  VTEP_LAYOUT(X)
#undef X
  exports.Set("layout", numbers);
  exports.Set("Batch", Batch::define(env));
  exports.Set("FlowTable", FlowTable::define(env));
  exports.Set("Tap", Tap::define(env));
  exports.Set("Taps", Taps::define(env));
  exports.Set("Udp", Udp::define(env));
  exports.Set("completeChecksum",
              Napi::Function::New<complete_checksum>(env, "completeChecksum"));
  define_pure(env, exports);
  define_notify(env, exports);
  exports.Set("duplicate", Napi::Function::New<duplicate>(env, "duplicate"));
  exports.Set("tapDemotions",
              Napi::Function::New<count_tap_demotions>(env, "tapDemotions"));
  exports.Set("paceBegin", Napi::Function::New<begin_pace>(env, "paceBegin"));
  exports.Set("paceTick", Napi::Function::New<tick_pace>(env, "paceTick"));
  exports.Set("canSteer", Napi::Function::New<can_steer_flows>(env, "canSteer"));
  return exports;
}

NODE_API_MODULE(vtep, init)
