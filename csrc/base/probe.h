// probe_cuda: step by step from "is there a driver" to the table of liblowbit_cuda.so. Each step
// that fails has a code of its own (lib/words.ts, `backendCodes`) and a sentence: what was found,
// what is needed, what to do.
//
//   NO_DRIVER           the driver's library does not load, or lacks a function
//   DRIVER_TOO_OLD      cuDriverGetVersion is below kCudaDriverMin
//   NO_DEVICE           cuInit or cuDeviceGetCount finds no GPU
//   UNSUPPORTED_DEVICE  no GPU has a compute capability of arch.h
//   LIBRARY_MISSING     liblowbit_cuda.so does not load
//   LIBRARY_MISMATCH    it lacks lowbit_cuda_api, or its ABI number is another
//   INIT_FAILED         the driver or the CUDA runtime refuses to start
#pragma once

#include <cstdint>

#include "csrc/base/cuda_api.h"

namespace lowbit {

// Loads it unless it is loaded already, with no look at the driver: kernel rows can be listed and
// chosen on any machine. Null, or why not: LIBRARY_MISSING or LIBRARY_MISMATCH with its sentence.
struct CudaLoad {
  const CudaApi* api;
  const char* code;
  char reason[640];
};
CudaLoad load_cuda_library(const char* library);

struct CudaProbe {
  const CudaApi* api;  // null unless code is "OK"
  const char* code;    // OK or one of the above
  char reason[640];    // empty with "OK"
  int32_t driver;      // as cuDriverGetVersion has it: 13000 is 13.0; 0: none
  int32_t devices;
};

// `library`: path of liblowbit_cuda.so. `driver`: name or path of the driver's library; null means
// libcuda.so.1. What was loaded stays loaded, because a CUDA library that is unloaded takes the
// process with it; a second call costs a few microseconds.
CudaProbe probe_cuda(const char* library, const char* driver);

}  // namespace lowbit
