#include "pure.h"

#include <cstring>
#include <memory>
#include <vector>

#include "coalesce.h"
#include "flows.h"
#include "segment.h"

static bool get_bytes(Napi::Value value, std::vector<uint8_t> *out) {
  if (value.IsEmpty()) return false;  // a getter threw
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    Napi::TypeError::New(value.Env(), "a Uint8Array is wanted").ThrowAsJavaScriptException();
    return false;
  }
  Napi::Uint8Array bytes = value.As<Napi::Uint8Array>();
  out->assign(bytes.Data(), bytes.Data() + bytes.ElementLength());
  return true;
}

static Napi::Value bytes_of(Napi::Env env, const std::vector<uint8_t> &bytes) {
  return Napi::Buffer<uint8_t>::Copy(env, bytes.data(), bytes.size());
}

// segment(frame, vnet) → frames, or -EINVAL
static Napi::Value segment(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  std::vector<uint8_t> frame, vnet;
  if (!get_bytes(info[0], &frame) || !get_bytes(info[1], &vnet)) return Napi::Value();
  virtio_net_hdr header = {};
  memcpy(&header, vnet.data(), vnet.size() < sizeof header ? vnet.size() : sizeof header);
  super_frame s;
  int error = super_frame_read(&s, frame.data(), static_cast<int32_t>(frame.size()), &header);
  if (error < 0) return Napi::Number::New(env, error);
  Napi::Array frames = Napi::Array::New(env);
  for (int32_t i = 0; i < s.segments; i++) {
    std::vector<uint8_t> piece(static_cast<size_t>(s.at.payload + s.size));
    piece.resize(static_cast<size_t>(super_frame_segment(&s, i, piece.data())));
    frames[static_cast<uint32_t>(i)] = bytes_of(env, piece);
  }
  return frames;
}

struct gathering {
  Napi::Env env;
  Napi::Array trains;
};

static void gather(void *owner, const frame_train *t) {
  gathering *g = static_cast<gathering *>(owner);
  std::vector<uint8_t> frame;
  for (int i = 1; i < t->parts; i++) {
    const uint8_t *at = static_cast<const uint8_t *>(t->part[i].iov_base);
    frame.insert(frame.end(), at, at + t->part[i].iov_len);
  }
  Napi::Array rows = Napi::Array::New(g->env);
  for (int i = 0; i < t->rows; i++) rows[static_cast<uint32_t>(i)] = t->row[i];
  Napi::Object train = Napi::Object::New(g->env);
  train.Set("rows", rows);
  train.Set("parts", t->parts);
  train.Set("vnet", Napi::Buffer<uint8_t>::Copy(
                        g->env, static_cast<const uint8_t *>(t->part[0].iov_base),
                        t->part[0].iov_len));
  train.Set("frame", bytes_of(g->env, frame));
  g->trains[g->trains.Length()] = train;
}

// coalesce(frames, tcp, udp) → [{rows, parts, vnet, frame}], in the order in which they are handed on
static Napi::Value coalesce_frames(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  if (!info[0].IsArray() || !info[1].IsBoolean() || !info[2].IsBoolean()) {
    Napi::TypeError::New(env, "frames, tcp and udp are wanted").ThrowAsJavaScriptException();
    return Napi::Value();
  }
  Napi::Array given = info[0].As<Napi::Array>();
  std::vector<std::vector<uint8_t>> frames;
  for (uint32_t i = 0; i < given.Length(); i++) {
    frames.emplace_back();
    if (!get_bytes(given.Get(i), &frames.back())) return Napi::Value();
  }
  gathering g = {env, Napi::Array::New(env)};
  auto c = std::make_unique<coalescer>();
  c->close = gather;
  c->owner = &g;
  c->tcp = info[1].As<Napi::Boolean>();
  c->udp = info[2].As<Napi::Boolean>();
  for (size_t i = 0; i < frames.size(); i++) {
    coalesce(c.get(), static_cast<int32_t>(i), frames[i].data(),
             static_cast<int32_t>(frames[i].size()));
  }
  coalesce_end(c.get());
  return g.trains;
}

// flowKey(frame) → bytes, or undefined
static Napi::Value key_of_flow(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  std::vector<uint8_t> frame;
  if (!get_bytes(info[0], &frame)) return Napi::Value();
  flow_key key;
  if (!flow_key_of_frame(0, frame.data(), static_cast<int32_t>(frame.size()), &key)) return env.Undefined();
  return Napi::Buffer<uint8_t>::Copy(env, key.bytes, static_cast<size_t>(key.length));
}

void define_pure(Napi::Env env, Napi::Object exports) {
  exports.Set("segment", Napi::Function::New<segment>(env, "segment"));
  exports.Set("coalesce", Napi::Function::New<coalesce_frames>(env, "coalesce"));
  exports.Set("flowKey", Napi::Function::New<key_of_flow>(env, "flowKey"));
}
