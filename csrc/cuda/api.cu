// lowbit_cuda_api: the table of cuda_api.h, the one symbol that liblowbit_cuda.so exports.
//
// The CUDA runtime is linked statically and nobody else sees it, so everything that needs it stands
// here: memory, streams, events, copies. Each function names its device first, because the current
// device belongs to the calling thread and a queue's executor is another thread than JavaScript's.
// No static object has a destructor: at exit the driver may be gone already.
#include <cuda_runtime.h>

#include <cstdio>

#include "csrc/base/cuda_api.h"

namespace lowbit {
namespace {

// A failed call leaves its code behind for the next cudaGetLastError(), which a kernel launch asks;
// taking it here keeps a refused allocation from being blamed on the next kernel.
int settled(cudaError_t code) {
  if (code != cudaSuccess) cudaGetLastError();
  return static_cast<int>(code);
}

int use(int index) { return settled(cudaSetDevice(index)); }

const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int device_count(int* count) { return settled(cudaGetDeviceCount(count)); }

int device_info(int index, CudaDeviceInfo* info) {
  cudaDeviceProp found;
  if (const int code = settled(cudaGetDeviceProperties(&found, index))) return code;
  std::snprintf(info->name, sizeof info->name, "%s", found.name);
  info->major = found.major;
  info->minor = found.minor;
  info->multiprocessors = found.multiProcessorCount;
  info->memory = static_cast<int64_t>(found.totalGlobalMem);
  info->l2 = found.l2CacheSize;
  int value = 0;
  if (const int code = settled(cudaDeviceGetAttribute(&value, cudaDevAttrMemoryClockRate, index))) {
    return code;
  }
  info->memory_clock_khz = value;
  if (const int code =
          settled(cudaDeviceGetAttribute(&value, cudaDevAttrGlobalMemoryBusWidth, index))) {
    return code;
  }
  info->bus_bits = value;
  return 0;
}

int alloc(int index, int64_t bytes, void** out) {
  if (const int code = use(index)) return code;
  return settled(cudaMalloc(out, static_cast<size_t>(bytes)));
}

int free_memory(int index, void* p) {
  if (const int code = use(index)) return code;
  return settled(cudaFree(p));
}

int memory_info(int index, int64_t* free_bytes, int64_t* total_bytes) {
  if (const int code = use(index)) return code;
  size_t unused = 0, all = 0;
  if (const int code = settled(cudaMemGetInfo(&unused, &all))) return code;
  *free_bytes = static_cast<int64_t>(unused);
  *total_bytes = static_cast<int64_t>(all);
  return 0;
}

int stream_create(int index, void** stream) {
  if (const int code = use(index)) return code;
  // Non-blocking: another library that uses the legacy stream must not order its work with ours.
  return settled(
      cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream), cudaStreamNonBlocking));
}

int stream_destroy(int index, void* stream) {
  if (const int code = use(index)) return code;
  return settled(cudaStreamDestroy(static_cast<cudaStream_t>(stream)));
}

int stream_sync(int index, void* stream) {
  if (const int code = use(index)) return code;
  return settled(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

int event_create(int index, void** event) {
  if (const int code = use(index)) return code;
  return settled(cudaEventCreate(reinterpret_cast<cudaEvent_t*>(event)));
}

int event_destroy(int index, void* event) {
  if (const int code = use(index)) return code;
  return settled(cudaEventDestroy(static_cast<cudaEvent_t>(event)));
}

int event_record(int index, void* event, void* stream) {
  if (const int code = use(index)) return code;
  return settled(
      cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream)));
}

// Waits for `end`: the time between two events is known only once both have passed.
int event_elapsed(int index, void* begin, void* end, float* milliseconds) {
  if (const int code = use(index)) return code;
  if (const int code = settled(cudaEventSynchronize(static_cast<cudaEvent_t>(end)))) return code;
  return settled(cudaEventElapsedTime(milliseconds, static_cast<cudaEvent_t>(begin),
                                      static_cast<cudaEvent_t>(end)));
}

int copy(int index, void* to, const void* from, int64_t bytes, cudaMemcpyKind kind, void* stream) {
  if (const int code = use(index)) return code;
  const auto on = static_cast<cudaStream_t>(stream);
  if (const int code = settled(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, on))) {
    return code;
  }
  return settled(cudaStreamSynchronize(on));
}

int copy_in(int index, void* to, const void* from, int64_t bytes, void* stream) {
  return copy(index, to, from, bytes, cudaMemcpyHostToDevice, stream);
}

int copy_out(int index, void* to, const void* from, int64_t bytes, void* stream) {
  return copy(index, to, from, bytes, cudaMemcpyDeviceToHost, stream);
}

constexpr CudaApi kApi = {
    .abi = kCudaAbi,
    .rows = 0,
    .runtime = CUDART_VERSION,
    .error_text = error_text,
    .device_count = device_count,
    .device_info = device_info,
    .alloc = alloc,
    .free = free_memory,
    .memory_info = memory_info,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .stream_sync = stream_sync,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_elapsed = event_elapsed,
    .copy_in = copy_in,
    .copy_out = copy_out,
};

}  // namespace
}  // namespace lowbit

extern "C" __attribute__((visibility("default"))) const lowbit::CudaApi* lowbit_cuda_api() {
  return &lowbit::kApi;
}
