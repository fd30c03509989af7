// Status to JavaScript error. The class is made by lib/errors.ts: objects made here would belong to
// Node's main realm.
#pragma once

#include <node_api.h>

#include "csrc/base/status.h"

namespace lowbit::binding {

// Both throw and return null, so that a callback can end with `return fail(...)`.
napi_value fail(napi_env env, const Status& status);
napi_value fail_type(napi_env env, const char* op, const char* name, const char* expected,
                     napi_value got);

}  // namespace lowbit::binding
