// probe_cuda: step by step from "is there a driver" to the table of liblowbit_cuda.so. Each step
// that fails has a code of its own (lib/words.ts, `backendCodes`) and a sentence.
#pragma once

#include <cstdint>

#include "csrc/base/cuda_api.h"

namespace lowbit {

struct CudaProbe {
  const CudaApi* api;  // null unless code is "OK"
  const char* code;    // OK, NO_DRIVER, DRIVER_TOO_OLD, NO_DEVICE, UNSUPPORTED_DEVICE,
                       // LIBRARY_MISSING, LIBRARY_MISMATCH, INIT_FAILED
  char reason[320];
  int32_t driver;  // as cuDriverGetVersion has it: 13000 is 13.0; 0: none
  int32_t devices;
};

// `library`: path of liblowbit_cuda.so. What was loaded stays loaded; a second call costs a few
// microseconds.
CudaProbe probe_cuda(const char* library);

}  // namespace lowbit
