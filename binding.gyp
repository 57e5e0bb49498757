{
  "targets": [
    {
      "target_name": "vtep",
      "sources": [
        "native/addon.cc",
        "native/checksum.cc",
        "native/coalesce.cc",
        "native/flood.cc",
        "native/flows.cc",
        "native/notify.cc",
        "native/pace.cc",
        "native/poll.cc",
        "native/pure.cc",
        "native/segment.cc",
        "native/steering.cc",
        "native/tap.cc",
        "native/tap_set.cc",
        "native/udp.cc",
        "native/udp_errors.cc",
        "native/udp_send.cc"
      ],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": [
        "NAPI_VERSION=8",
        "NAPI_DISABLE_CPP_EXCEPTIONS",
        # Or a worker that is terminated within a call or a callback ends the whole process.
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"
      ],
      "cflags!": ["-O2"],
      "cflags_cc!": ["-std=gnu++17", "-std=gnu++20"],
      "cflags_cc": [
        "-std=c++17",
        "-O3",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fno-exceptions",
        "-fvisibility=hidden"
      ]
    }
  ]
}
