#include "csrc/base/status.h"

#include <cstdarg>
#include <cstdio>

namespace lowbit {

Status error(Code code, const char* format, ...) {
  Status s;
  s.code = code;
  va_list args;
  va_start(args, format);
  std::vsnprintf(s.text, sizeof s.text, format, args);
  va_end(args);
  return s;
}

const char* code_name(Code code) {
  switch (code) {
    case Code::ok: return "OK";
    case Code::type: return "ERR_TYPE";
    case Code::shape: return "ERR_SHAPE";
    case Code::dtype: return "ERR_DTYPE";
    case Code::device: return "ERR_DEVICE";
    case Code::strides: return "ERR_STRIDES";
    case Code::argument: return "ERR_ARGUMENT";
    case Code::disposed: return "ERR_DISPOSED";
    case Code::unsupported: return "ERR_UNSUPPORTED";
    case Code::memory: return "ERR_MEMORY";
    case Code::cuda: return "ERR_CUDA";
    case Code::internal: return "ERR_INTERNAL";
  }
  return "ERR_INTERNAL";
}

}  // namespace lowbit
