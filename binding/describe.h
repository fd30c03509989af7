// Small setters for the plain objects that describe native tables to JavaScript.
#pragma once

#include <node_api.h>

namespace lowbit::binding {

void set_number(napi_env env, napi_value object, const char* name, double value);
void set_boolean(napi_env env, napi_value object, const char* name, bool value);
void set_text(napi_env env, napi_value object, const char* name, const char* value);
void push(napi_env env, napi_value array, napi_value value);
void push_text(napi_env env, napi_value array, const char* value);

}  // namespace lowbit::binding
