// liblowbit_cuda.so for tests: the table of cuda_api.h over host memory, with the answers that the
// compiler's command line gives. What the addon does with a GPU's tensors can be tested with it
// where there is no GPU.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "csrc/base/cuda_api.h"

#ifndef ABI
#define ABI lowbit::kCudaAbi
#endif
#ifndef ROWS
#define ROWS 0
#endif
#ifndef COUNT_CODE
#define COUNT_CODE 0
#endif
#ifndef COPY_CODE
#define COPY_CODE 0
#endif
#ifndef ENTRY
#define ENTRY lowbit_cuda_api
#endif

static const int64_t kMemory = 1 << 20;
static int64_t in_use = 0;

static int fine(int, void*) { return 0; }
static int make(int, void** out) {
  *out = &in_use;
  return 0;
}

static const lowbit::CudaApi kApi = {
    .abi = ABI,
    .rows = ROWS,
    .runtime = 13000,
    .error_text = [](int code) { return code == 2 ? "out of memory" : "a fake error"; },
    .device_count =
        [](int* count) {
          *count = 2;
          return COUNT_CODE;
        },
    .device_info =
        [](int index, lowbit::CudaDeviceInfo* info) {
          *info = {};
          std::snprintf(info->name, sizeof info->name, "Fake %d", index);
          info->major = index == 0 ? 9 : 6;  // the second one is too old
          info->memory = kMemory;
          return 0;
        },
    .alloc =
        [](int, int64_t bytes, void** out) {
          if (in_use + bytes > kMemory) return 2;
          in_use += bytes;
          *out = std::malloc(static_cast<size_t>(bytes) + 64);
          std::memcpy(*out, &bytes, sizeof bytes);
          *out = static_cast<char*>(*out) + 64;
          return 0;
        },
    .free =
        [](int, void* p) {
          int64_t bytes;
          void* block = static_cast<char*>(p) - 64;
          std::memcpy(&bytes, block, sizeof bytes);
          in_use -= bytes;
          std::free(block);
          return 0;
        },
    .memory_info =
        [](int, int64_t* free_bytes, int64_t* total_bytes) {
          *free_bytes = kMemory - in_use;
          *total_bytes = kMemory;
          return 0;
        },
    .stream_create = make,
    .stream_destroy = fine,
    .stream_sync = fine,
    .event_create = make,
    .event_destroy = fine,
    .event_record = [](int, void*, void*) { return 0; },
    .event_elapsed =
        [](int, void*, void*, float* milliseconds) {
          *milliseconds = 0;
          return 0;
        },
    .copy_in =
        [](int, void* to, const void* from, int64_t bytes, void*) {
          std::memcpy(to, from, static_cast<size_t>(bytes));
          return COPY_CODE;
        },
    .copy_out =
        [](int, void* to, const void* from, int64_t bytes, void*) {
          std::memcpy(to, from, static_cast<size_t>(bytes));
          return 0;
        },
};

extern "C" const lowbit::CudaApi* ENTRY() { return &kApi; }
