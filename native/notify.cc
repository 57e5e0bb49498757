#include "notify.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstring>
#include <string>

int notify_send(const char *path, size_t path_bytes, const char *message, size_t bytes,
                const int *fds, size_t count) {
  sockaddr_un to = {};
  if (path_bytes < 2 || path_bytes >= sizeof to.sun_path || count > MAX_NOTIFY_FDS) return -EINVAL;
  to.sun_family = AF_UNIX;
  memcpy(to.sun_path, path, path_bytes);
  if (path[0] == '@') to.sun_path[0] = '\0';

  iovec data = {const_cast<char *>(message), bytes};
  msghdr header = {};
  header.msg_name = &to;
  // The name of an abstract socket is as long as the address says: no zero ends it.
  header.msg_namelen = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path_bytes);
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * MAX_NOTIFY_FDS)] = {};
  if (count > 0) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    cmsghdr *rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(rights), fds, sizeof(int) * count);
  }

  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -errno;
  int error = sendmsg(fd, &header, MSG_NOSIGNAL) < 0 ? -errno : 0;
  close(fd);
  return error;
}

// notify(path, message, descriptors) → 0 or -errno
static Napi::Value notify(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  if (!info[0].IsString() || !info[1].IsString() || !info[2].IsArray()) {
    Napi::TypeError::New(env, "a path, a message and an array of descriptors are wanted")
        .ThrowAsJavaScriptException();
    return Napi::Value();
  }
  std::string path = info[0].As<Napi::String>(), message = info[1].As<Napi::String>();
  Napi::Array given = info[2].As<Napi::Array>();
  int fds[MAX_NOTIFY_FDS];
  uint32_t count = given.Length();
  if (count > MAX_NOTIFY_FDS) return Napi::Number::New(env, -EINVAL);
  for (uint32_t i = 0; i < count; i++) {
    Napi::Value fd = given.Get(i);
    if (fd.IsEmpty()) return Napi::Value();  // a getter threw
    if (!fd.IsNumber()) {
      Napi::TypeError::New(env, "a descriptor must be a number").ThrowAsJavaScriptException();
      return Napi::Value();
    }
    double number = fd.As<Napi::Number>().DoubleValue();
    if (!(number >= 0 && number <= INT_MAX)) return Napi::Number::New(env, -EBADF);
    fds[i] = static_cast<int>(number);
  }
  return Napi::Number::New(
      env, notify_send(path.data(), path.size(), message.data(), message.size(), fds, count));
}

void define_notify(Napi::Env env, Napi::Object exports) {
  exports.Set("notify", Napi::Function::New<notify>(env, "notify"));
}
