// The offloads, and by what a flow is known, as functions of JavaScript, for tests: what happens to frames without a
// device.

#pragma once

#include <napi.h>

void define_pure(Napi::Env env, Napi::Object exports);
