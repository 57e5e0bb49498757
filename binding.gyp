{
  "targets": [
    {
      "target_name": "vtep",
      "sources": [
        "native/addon.cc",
        "native/checksum.cc",
        "native/poll.cc",
        "native/tap.cc",
        "native/udp.cc"
      ],
      "defines": ["NAPI_VERSION=8"],
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
