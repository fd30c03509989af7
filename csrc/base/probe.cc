#include "csrc/base/probe.h"

#include <dlfcn.h>

#include <cstdio>

namespace lowbit {

CudaProbe probe_cuda(const char* library) {
  CudaProbe p = {};
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr) {
    p.code = "NO_DRIVER";
    std::snprintf(p.reason, sizeof p.reason, "the NVIDIA driver is not installed: %s", dlerror());
    return p;
  }
  (void)library;
  p.code = "INIT_FAILED";
  return p;
}

}  // namespace lowbit
