// lowbit_cuda_api: the table of cuda_api.h, the one symbol that liblowbit_cuda.so exports.
//
// The CUDA runtime is linked statically and nobody else sees it, so everything that needs it stands
// here: memory, streams, events, copies.
// No static object has a destructor: at exit the driver may be gone already.
#include <cuda_runtime.h>

#include <cstdio>

#include "csrc/cuda/rows.h"

namespace lowbit {
namespace {

// A failed call leaves its code behind for the next cudaGetLastError(), which a kernel launch asks;
// taking it here keeps a refused allocation from being blamed on the next kernel.
int settled(cudaError_t code) {
  if (code != cudaSuccess) cudaGetLastError();
  return static_cast<int>(code);
}

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

int use(int index) { return settled(cudaSetDevice(index)); }

cudaStream_t on(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(void* event) { return static_cast<cudaEvent_t>(event); }
cudaMemPool_t pool_of(void* pool) { return static_cast<cudaMemPool_t>(pool); }

int pool_create(int index, void** pool) {
  cudaMemPoolProps props = {};
  props.allocType = cudaMemAllocationTypePinned;
  props.location = {cudaMemLocationTypeDevice, index};
  cudaMemPool_t made;
  if (const int code = settled(cudaMemPoolCreate(&made, &props))) return code;
  // Without it every synchronisation gives unused memory back to the driver, and the next op waits
  // until it is mapped again.
  uint64_t keep = UINT64_MAX;
  *pool = made;
  return settled(cudaMemPoolSetAttribute(made, cudaMemPoolAttrReleaseThreshold, &keep));
}
int pool_destroy(void* pool) { return settled(cudaMemPoolDestroy(pool_of(pool))); }
int pool_trim(void* pool) { return settled(cudaMemPoolTrimTo(pool_of(pool), 0)); }

int alloc(void* pool, int64_t bytes, void* stream, void** out) {
  return settled(
      cudaMallocFromPoolAsync(out, static_cast<size_t>(bytes), pool_of(pool), on(stream)));
}
int free_memory(void* p, void* stream) {
  return settled(stream != nullptr ? cudaFreeAsync(p, on(stream)) : cudaFree(p));
}
int host_alloc(int64_t bytes, void** out) {
  return settled(cudaHostAlloc(out, static_cast<size_t>(bytes), cudaHostAllocPortable));
}
int host_free(void* p) { return settled(cudaFreeHost(p)); }

int stream_create(void** stream) {
  // Non-blocking: another library that uses the legacy stream must not order its work with ours.
  return settled(
      cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream), cudaStreamNonBlocking));
}
int stream_destroy(void* stream) { return settled(cudaStreamDestroy(on(stream))); }
int stream_sync(void* stream) { return settled(cudaStreamSynchronize(on(stream))); }

int event_create(bool timed, void** event) {
  const unsigned flags = timed ? cudaEventDefault : cudaEventDisableTiming | cudaEventBlockingSync;
  return settled(cudaEventCreateWithFlags(reinterpret_cast<cudaEvent_t*>(event), flags));
}
int event_destroy(void* event) { return settled(cudaEventDestroy(event_of(event))); }
int event_record(void* event, void* stream) {
  return settled(cudaEventRecord(event_of(event), on(stream)));
}
int event_reached(void* event, bool* reached) {
  const cudaError_t code = cudaEventQuery(event_of(event));
  *reached = code != cudaErrorNotReady;
  return settled(code == cudaErrorNotReady ? cudaSuccess : code);
}
int event_wait(void* event) { return settled(cudaEventSynchronize(event_of(event))); }
// Waits for `end`: the time between two events is known only once both have passed.
int event_elapsed(void* begin, void* end, float* milliseconds) {
  if (const int code = event_wait(end)) return code;
  return settled(cudaEventElapsedTime(milliseconds, event_of(begin), event_of(end)));
}

// Relaxed: memory for what is recorded comes from another stream meanwhile.
int record_begin(void* stream) {
  return settled(cudaStreamBeginCapture(on(stream), cudaStreamCaptureModeRelaxed));
}
int record_end(void* stream, void** graph) {
  cudaGraph_t recorded = nullptr;
  int code = settled(cudaStreamEndCapture(on(stream), &recorded));
  if (recorded == nullptr) return code;
  cudaGraphExec_t ready = nullptr;
  if (code == 0 && graph != nullptr) code = settled(cudaGraphInstantiate(&ready, recorded, 0));
  settled(cudaGraphDestroy(recorded));
  if (graph != nullptr) *graph = ready;
  return code;
}
int graph_launch(void* graph, void* stream) {
  return settled(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), on(stream)));
}
int graph_destroy(void* graph) {
  return settled(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)));
}

int copy(void* to, const void* from, int64_t bytes, void* stream) {
  return settled(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, on(stream)));
}
int fill(void* to, int value, int64_t bytes, void* stream) {
  return settled(cudaMemsetAsync(to, value, static_cast<size_t>(bytes), on(stream)));
}

constexpr CudaApi kApi = {
    .abi = kCudaAbi,
    .runtime = CUDART_VERSION,
    .ops = kCudaOps,
    .op_count = kCudaOpCount,
    .error_text = error_text,
    .device_count = device_count,
    .device_info = device_info,
    .use = use,
    .pool_create = pool_create,
    .pool_destroy = pool_destroy,
    .pool_trim = pool_trim,
    .alloc = alloc,
    .free = free_memory,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .stream_sync = stream_sync,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_reached = event_reached,
    .event_wait = event_wait,
    .event_elapsed = event_elapsed,
    .record_begin = record_begin,
    .record_end = record_end,
    .graph_launch = graph_launch,
    .graph_destroy = graph_destroy,
    .copy = copy,
    .fill = fill,
};

}  // namespace
}  // namespace lowbit

extern "C" __attribute__((visibility("default"))) const lowbit::CudaApi* lowbit_cuda_api() {
  return &lowbit::kApi;
}
