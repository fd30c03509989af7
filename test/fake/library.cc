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

static int fine(void*) { return 0; }
static int make(void** out) {
  *out = &in_use;
  return 0;
}

static const lowbit::CudaApi kApi = {
    .abi = ABI,
    .runtime = 13000,
    .ops = nullptr,
    .op_count = 0,
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
    .use = [](int) { return 0; },
    .pool_create = [](int, void** pool) { return make(pool); },
    .pool_destroy = fine,
    .pool_trim = fine,
    .alloc =
        [](void*, int64_t bytes, void*, void** out) {
          if (in_use + bytes > kMemory) return 2;
          in_use += bytes;
          *out = std::malloc(static_cast<size_t>(bytes) + 64);
          std::memcpy(*out, &bytes, sizeof bytes);
          *out = static_cast<char*>(*out) + 64;
          return 0;
        },
    .free =
        [](void* p, void*) {
          int64_t bytes;
          void* block = static_cast<char*>(p) - 64;
          std::memcpy(&bytes, block, sizeof bytes);
          in_use -= bytes;
          std::free(block);
          return 0;
        },
    .host_alloc =
        [](int64_t bytes, void** out) {
          *out = std::malloc(static_cast<size_t>(bytes));
          return *out != nullptr ? 0 : 2;
        },
    .host_free =
        [](void* p) {
          std::free(p);
          return 0;
        },
    .stream_create = make,
    .stream_destroy = fine,
    .stream_sync = fine,
    .event_create = [](bool, void** event) { return make(event); },
    .event_destroy = fine,
    .event_record = [](void*, void*) { return 0; },
    .event_reached =
        [](void*, bool* reached) {
          *reached = true;
          return 0;
        },
    .event_wait = fine,
    .event_elapsed =
        [](void*, void*, float* milliseconds) {
          *milliseconds = 0;
          return 0;
        },
    .copy =
        [](void* to, const void* from, int64_t bytes, void*) {
          std::memcpy(to, from, static_cast<size_t>(bytes));
          return COPY_CODE;
        },
    .fill =
        [](void* to, int value, int64_t bytes, void*) {
          std::memset(to, value, static_cast<size_t>(bytes));
          return 0;
        },
};

extern "C" const lowbit::CudaApi* ENTRY() { return &kApi; }
