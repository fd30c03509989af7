// Env: the state of one JavaScript environment (the main thread, or a worker). Nothing here is
// global, so that every worker thread, and every test file of a test runner, has its own.
#pragma once

#include <node_api.h>

#include <string>
#include <unordered_set>

#include "csrc/base/device.h"
#include "csrc/linear/tuned.h"

namespace lowbit::binding {

struct Env {
  napi_env env = nullptr;
  napi_ref make_error = nullptr;  // (code, text) => Error, made by lib/errors.ts
  Pool* host_pool = nullptr;      // quantises and packs; made on first use
  int32_t next_device = 0;
  std::string forced_row;   // LB_KERNEL
  std::string arch_cap;     // LB_ARCH
  bool log = false;         // LB_LOG=1
  const char* chosen = "";  // the row of the op that was called last
  bool guard = false;       // LB_GUARD=1
  LinearTuned tuned;        // LB_TUNE
  std::unordered_set<std::string> logged;
};

void open_env(napi_env env);  // called once, by the module's init
Env* env_of(napi_env env);
Pool* host_pool(napi_env env);

}  // namespace lowbit::binding
