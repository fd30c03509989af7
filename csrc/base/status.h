// Status: how every function of csrc reports success or failure. No heap, no exceptions.
#pragma once

#include <cstdint>

namespace lowbit {

// The order is shared with lib/words.ts (`errorCodes`) and compared when the addon loads.
enum class Code : int32_t {
  ok,
  type,         // a JavaScript value of the wrong kind
  shape,        // sizes that do not belong together
  dtype,        // element types that do not belong together
  device,       // tensors of different devices, or of a device the op can't use
  strides,      // a view whose memory order the op can't read
  argument,     // a number or word out of its range
  disposed,     // a tensor or weight used after dispose()
  unsupported,  // legal, but no kernel serves it
  memory,       // host or device memory is exhausted
  cuda,         // the CUDA runtime reported an error
  internal,     // a broken promise inside lowbit
};

struct Status {
  Code code;
  char text[244];
};

static inline bool is_ok(const Status& s) { return s.code == Code::ok; }

static inline Status ok() {
  Status s;
  s.code = Code::ok;
  s.text[0] = 0;
  return s;
}

// printf-style; the text is cut at the size of the buffer.
[[gnu::format(printf, 2, 3)]] Status error(Code code, const char* format, ...);

const char* code_name(Code code);  // "ERR_SHAPE"; "OK" for ok
inline constexpr int kCodes = static_cast<int>(Code::internal) + 1;

}  // namespace lowbit

#define LB_TRY(expression)                             \
  do {                                                 \
    ::lowbit::Status lb_status = (expression);         \
    if (!::lowbit::is_ok(lb_status)) return lb_status; \
  } while (0)
