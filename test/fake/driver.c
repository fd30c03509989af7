// A driver's library for tests: as much of libcuda.so.1 as csrc/base/probe.cc asks for, with the
// answers that the compiler's command line gives.
#ifndef VERSION
#define VERSION 13000
#endif
#ifndef INIT
#define INIT 0
#endif
#ifndef COUNT
#define COUNT 1
#endif
#ifndef CAPABILITY
#define CAPABILITY 90
#endif
#ifndef ATTRIBUTES
#define ATTRIBUTES 0
#endif

#ifndef NO_INIT
int cuInit(unsigned flags) { return INIT + 0 * (int)flags; }
#endif
int cuDriverGetVersion(int* version) {
  *version = VERSION;
  return 0;
}
int cuDeviceGetCount(int* count) {
  *count = COUNT;
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? CAPABILITY / 10 : attribute == 76 ? CAPABILITY % 10 : device;
  return ATTRIBUTES;
}
int cuDeviceGetName(char* name, int size, int device) {
  for (int i = 0; i < 5 && i < size; ++i) name[i] = "Fake"[i];
  return 0 * device;
}
int cuGetErrorString(int code, const char** text) {
  *text = code == 999 ? "unknown error" : "a fake error";
  return 0;
}
