// What liblowbit_cuda.so hands out: one C function, lowbit_cuda_api(), returns this table. The
// addon holds no CUDA code; the library holds the CUDA runtime, linked statically, and knows
// nothing of the addon but this header and the headers of the ops whose kernel rows it has.
#pragma once

#include <cstdint>

namespace lowbit {

// Changes with every change of this struct or of the structs that kernel rows of the library take.
inline constexpr int32_t kCudaAbi = 6;
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

// The kernel rows of one op: pointers to its Kernel<Args, Spec>, in order of preference.
struct CudaRows {
  const char* op;
  const void* const* rows;
  int32_t count;
};

// Functions return 0 or a cudaError_t; error_text() explains it. All but the first three act on the
// device that the calling thread named last in use().
struct CudaApi {
  int32_t abi;
  int32_t runtime;  // version of the CUDA runtime inside: 13000 is 13.0
  const CudaRows* ops;
  int32_t op_count;
  const char* (*error_text)(int code);
  int (*device_count)(int* count);
  int (*device_info)(int index, CudaDeviceInfo* info);
  int (*use)(int index);
  // Memory comes from a pool and goes back to it in the order of a stream.
  int (*pool_create)(int index, void** pool);
  int (*pool_destroy)(void* pool);  // once its last block is given back
  int (*pool_trim)(void* pool);     // what no block uses goes back to the driver
  int (*alloc)(void* pool, int64_t bytes, void* stream, void** out);
  int (*free)(void* p, void* stream);  // null stream: at once, after everything on the device
  int (*host_alloc)(int64_t bytes, void** out);  // pinned
  int (*host_free)(void* p);
  int (*stream_create)(void** stream);
  int (*stream_destroy)(void* stream);
  int (*stream_sync)(void* stream);
  int (*event_create)(bool timed, void** event);
  int (*event_destroy)(void* event);
  int (*event_record)(void* event, void* stream);
  int (*event_reached)(void* event, bool* reached);
  int (*event_wait)(void* event);  // the thread sleeps
  int (*event_elapsed)(void* begin, void* end, float* milliseconds);
  // What goes to the stream between begin and end is recorded and not run. A null `graph` drops it.
  int (*record_begin)(void* stream);
  int (*record_end)(void* stream, void** graph);
  int (*graph_launch)(void* graph, void* stream);
  int (*graph_destroy)(void* graph);  // once its last launch has ended
  int (*copy)(void* to, const void* from, int64_t bytes, void* stream);  // to or from pinned memory
  int (*fill)(void* to, int value, int64_t bytes, void* stream);         // a byte
};

using CudaEntry = const CudaApi* (*)();
inline constexpr const char* kCudaEntryName = "lowbit_cuda_api";

// The table of the library that this process loaded, or null. It is loaded once and stays: see
// probe.h.
const CudaApi* cuda_library();
// Its rows of an op; none before it is loaded.
CudaRows cuda_rows(const char* op);

}  // namespace lowbit
