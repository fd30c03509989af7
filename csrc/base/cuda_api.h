// What liblowbit_cuda.so hands out: one C function, lowbit_cuda_api(), returns this table. The
// addon holds no CUDA code; the library holds the CUDA runtime, linked statically, and knows
// nothing of the addon but this header.
#pragma once

#include <cstdint>

namespace lowbit {

// Changes with every change of this struct or of the structs that kernel rows of the library take.
inline constexpr int32_t kCudaAbi = 1;
// The lowest driver that the library's CUDA runtime works with (CUDA 13.0), as cuDriverGetVersion
// reports it.
inline constexpr int32_t kCudaDriverMin = 13000;

struct CudaDeviceInfo {
  char name[64];
  int32_t major, minor;  // compute capability
  int32_t multiprocessors;
  int64_t memory;                      // bytes
  int64_t l2;                          // bytes
  int32_t memory_clock_khz, bus_bits;  // their product gives the peak bandwidth
};

// Functions return 0 or a cudaError_t; error_text() explains it.
struct CudaApi {
  int32_t abi;
  int32_t rows;     // kernel rows in the library
  int32_t runtime;  // version of the CUDA runtime inside: 13000 is 13.0
  const char* (*error_text)(int code);
  int (*device_count)(int* count);
  int (*device_info)(int index, CudaDeviceInfo* info);
  int (*alloc)(int index, int64_t bytes, void** out);
  int (*free)(int index, void* p);
  int (*memory_info)(int index, int64_t* free_bytes, int64_t* total_bytes);
  int (*stream_create)(int index, void** stream);
  int (*stream_destroy)(int index, void* stream);
  int (*stream_sync)(int index, void* stream);
  int (*event_create)(int index, void** event);
  int (*event_destroy)(int index, void* event);
  int (*event_record)(int index, void* event, void* stream);
  int (*event_elapsed)(int index, void* begin, void* end, float* milliseconds);
  int (*copy_in)(int index, void* to, const void* from, int64_t bytes,
                 void* stream);  // host to device
  int (*copy_out)(int index, void* to, const void* from, int64_t bytes,
                  void* stream);  // device to host
};

using CudaEntry = const CudaApi* (*)();
inline constexpr const char* kCudaEntryName = "lowbit_cuda_api";

}  // namespace lowbit
