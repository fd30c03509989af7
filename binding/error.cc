#include "binding/error.h"

#include <cstdio>

#include "binding/env.h"

namespace lowbit::binding {

napi_value fail(napi_env env, const Status& status) {
  bool pending = false;
  napi_is_exception_pending(env, &pending);
  if (pending) return nullptr;
  napi_value make, receiver, argv[2], made;
  Env* state = env_of(env);
  if (state->make_error == nullptr ||
      napi_get_reference_value(env, state->make_error, &make) != napi_ok) {
    napi_throw_error(env, code_name(status.code), status.text);
    return nullptr;
  }
  napi_get_undefined(env, &receiver);
  napi_create_string_utf8(env, code_name(status.code), NAPI_AUTO_LENGTH, &argv[0]);
  napi_create_string_utf8(env, status.text, NAPI_AUTO_LENGTH, &argv[1]);
  if (napi_call_function(env, receiver, make, 2, argv, &made) == napi_ok) napi_throw(env, made);
  return nullptr;
}

static const char* word_for(napi_env env, napi_value value, char (&buffer)[48]) {
  napi_valuetype type = napi_undefined;
  napi_typeof(env, value, &type);
  bool array = false, typed = false;
  double d = 0;
  switch (type) {
    case napi_undefined: return "undefined";
    case napi_null: return "null";
    case napi_boolean: return "a boolean";
    case napi_number:
      napi_get_value_double(env, value, &d);
      std::snprintf(buffer, sizeof buffer, "the number %g", d);
      return buffer;
    case napi_string: return "a string";
    case napi_symbol: return "a symbol";
    case napi_function: return "a function";
    case napi_bigint: return "a bigint";
    case napi_external: return "an external";
    case napi_object:
      napi_is_array(env, value, &array);
      napi_is_typedarray(env, value, &typed);
      return array ? "an array" : typed ? "a typed array" : "an object of another kind";
  }
  return "a value of another kind";
}

napi_value fail_type(napi_env env, const char* op, const char* name, const char* expected,
                     napi_value got) {
  char buffer[48];
  return fail(env, error(Code::type, "%s: expected %s to be %s but got %s", op, name, expected,
                         word_for(env, got, buffer)));
}

}  // namespace lowbit::binding
