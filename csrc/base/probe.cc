#include "csrc/base/probe.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "csrc/base/arch.h"

namespace lowbit {

// The few functions of the CUDA driver API that the probe calls, and the numbers that it gives and
// gets. Declared here because the addon is built without CUDA's headers.
static constexpr int kCudaErrorNoDevice = 100;
static constexpr int kAttributeMajor = 75, kAttributeMinor = 76;  // compute capability
struct Driver {
  int (*init)(unsigned flags);
  int (*version)(int* version);
  int (*device_count)(int* count);
  int (*device_attribute)(int* value, int attribute, int device);
  int (*device_name)(char* name, int size, int device);
  int (*error_string)(int code, const char** text);
};

__attribute__((format(printf, 3, 4))) static CudaProbe stop(CudaProbe p, const char* code,
                                                            const char* format, ...) {
  p.api = nullptr;
  p.code = code;
  va_list args;
  va_start(args, format);
  std::vsnprintf(p.reason, sizeof p.reason, format, args);
  va_end(args);
  return p;
}

template <class Function>
static bool resolve(void* library, const char* name, Function* out) {
  *out = reinterpret_cast<Function>(dlsym(library, name));
  return *out != nullptr;
}

// The name of the first function that is missing, or null.
static const char* resolve_driver(void* library, Driver* d) {
  if (!resolve(library, "cuInit", &d->init)) return "cuInit";
  if (!resolve(library, "cuDriverGetVersion", &d->version)) return "cuDriverGetVersion";
  if (!resolve(library, "cuDeviceGetCount", &d->device_count)) return "cuDeviceGetCount";
  if (!resolve(library, "cuDeviceGetAttribute", &d->device_attribute))
    return "cuDeviceGetAttribute";
  if (!resolve(library, "cuDeviceGetName", &d->device_name)) return "cuDeviceGetName";
  if (!resolve(library, "cuGetErrorString", &d->error_string)) return "cuGetErrorString";
  return nullptr;
}

static const char* text_of(const Driver& d, int code) {
  const char* text = nullptr;
  return d.error_string(code, &text) == 0 && text != nullptr ? text : "unknown error";
}

// Null if a GPU of a supported compute capability is there; else `name` and the capability * 10 of
// the newest one that is not.
static bool find_supported(const Driver& d, int count, char (&name)[100], int* newest) {
  *newest = -1;
  for (int i = 0; i < count; ++i) {
    int major = 0, minor = 0;
    if (d.device_attribute(&major, kAttributeMajor, i) != 0 ||
        d.device_attribute(&minor, kAttributeMinor, i) != 0) {
      continue;
    }
    if (detect_gpu(major, minor) != 0) return true;
    if (major * 10 + minor <= *newest) continue;
    *newest = major * 10 + minor;
    if (d.device_name(name, sizeof name, i) != 0) std::snprintf(name, sizeof name, "cuda:%d", i);
  }
  return false;
}

// Process-wide, as what dlopen loads is.
static std::atomic<const CudaApi*> loaded_library{nullptr};

const CudaApi* cuda_library() { return loaded_library.load(std::memory_order_acquire); }

CudaRows cuda_rows(const char* op) {
  const CudaApi* api = cuda_library();
  for (int i = 0; api != nullptr && i < api->op_count; ++i) {
    if (std::strcmp(api->ops[i].op, op) == 0) return api->ops[i];
  }
  return {op, nullptr, 0};
}

CudaLoad load_cuda_library(const char* library) {
  CudaLoad out = {cuda_library(), "OK", ""};
  if (out.api != nullptr) return out;
  void* kernels = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (kernels == nullptr) {
    out.code = "LIBRARY_MISSING";
    std::snprintf(out.reason, sizeof out.reason,
                  "the CUDA part of lowbit does not load: %s; build it with nvcc 13 on PATH (npm "
                  "run build), or give its path in LB_CUDA_LIBRARY",
                  dlerror());
    return out;
  }
  CudaEntry entry = nullptr;
  out.code = "LIBRARY_MISMATCH";
  if (!resolve(kernels, kCudaEntryName, &entry)) {
    std::snprintf(out.reason, sizeof out.reason,
                  "%s is no CUDA part of lowbit: it lacks %s; build the package again", library,
                  kCudaEntryName);
    return out;
  }
  const CudaApi* api = entry();
  if (api == nullptr || api->abi != kCudaAbi) {
    std::snprintf(out.reason, sizeof out.reason,
                  "%s is of another build of lowbit: its ABI number is %d and the addon needs %d; "
                  "build the package again",
                  library, api == nullptr ? 0 : api->abi, kCudaAbi);
    return out;
  }
  loaded_library.store(api, std::memory_order_release);
  return {api, "OK", ""};
}

CudaProbe probe_cuda(const char* library, const char* driver) {
  CudaProbe p = {};
  const char* driver_name = driver != nullptr && *driver != 0 ? driver : "libcuda.so.1";
  void* handle = dlopen(driver_name, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return stop(p, "NO_DRIVER",
                "no NVIDIA driver: %s; to use a GPU, install driver 580 or newer (in a container: "
                "start it with --gpus)",
                dlerror());
  }
  Driver d = {};
  if (const char* missing = resolve_driver(handle, &d)) {
    return stop(p, "NO_DRIVER", "%s is no NVIDIA driver library: it lacks %s", driver_name,
                missing);
  }
  int version = 0;
  if (const int code = d.version(&version)) {
    return stop(p, "INIT_FAILED", "the NVIDIA driver does not tell its version: %s (%d)",
                text_of(d, code), code);
  }
  p.driver = version;
  if (version < kCudaDriverMin) {
    return stop(p, "DRIVER_TOO_OLD",
                "the NVIDIA driver is for CUDA %d.%d and lowbit needs CUDA %d.%d; install driver "
                "580 or newer",
                version / 1000, version % 1000 / 10, kCudaDriverMin / 1000,
                kCudaDriverMin % 1000 / 10);
  }
  const int started = d.init(0);
  int count = 0;
  if (started != 0 && started != kCudaErrorNoDevice) {
    return stop(p, "INIT_FAILED", "the NVIDIA driver does not start: %s (%d)", text_of(d, started),
                started);
  }
  if (started == 0) {
    if (const int code = d.device_count(&count)) {
      return stop(p, "INIT_FAILED", "the NVIDIA driver does not count its GPUs: %s (%d)",
                  text_of(d, code), code);
    }
  }
  if (count == 0) {
    return stop(p, "NO_DEVICE",
                "the NVIDIA driver finds no GPU; see what nvidia-smi lists and what "
                "CUDA_VISIBLE_DEVICES hides");
  }
  p.devices = count;
  char name[100] = {};
  int newest = -1;
  if (!find_supported(d, count, name, &newest)) {
    if (newest < 0) {
      return stop(p, "INIT_FAILED", "the NVIDIA driver does not tell what its %d GPU(s) can do",
                  count);
    }
    return stop(p, "UNSUPPORTED_DEVICE",
                "%s has compute capability %d.%d and lowbit needs a GPU of 7.5 (Turing) or newer",
                name, newest / 10, newest % 10);
  }
  const CudaLoad loaded = load_cuda_library(library);
  const CudaApi* api = loaded.api;
  if (api == nullptr) return stop(p, loaded.code, "%s", loaded.reason);
  if (const int code = api->device_count(&count)) {
    return stop(p, "INIT_FAILED", "the CUDA runtime does not start: %s (%d)", api->error_text(code),
                code);
  }
  p.devices = count;
  p.api = api;
  p.code = "OK";
  return p;
}

}  // namespace lowbit
