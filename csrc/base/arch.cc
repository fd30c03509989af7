// Built without ISA flags and without LTO: this is the code that decides what may run.
#include "csrc/base/arch.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>

#include "csrc/base/cgroup.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace lowbit {

#if defined(__x86_64__)
static uint64_t xgetbv0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux gives a process the 8 KiB of tile state only when asked, once for all its threads.
static bool ask_for_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

ArchSet detect_cpu() {
  ArchSet set = kArchCpu;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return set;
  const bool osxsave = c >> 27 & 1, avx = c >> 28 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
  if (!osxsave || !avx) return set;
  const uint64_t state = xgetbv0();
  const bool ymm = (state & 0x6) == 0x6;    // XMM and YMM
  const bool zmm = (state & 0xe6) == 0xe6;  // and opmask, upper ZMM, high ZMM
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return set;
  const bool avx2 = b >> 5 & 1;
  if (!(ymm && avx2 && fma && f16c)) return set;
  set |= kArchAvx2;
  const bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1;
  if (!(zmm && f && dq && bw && vl)) return set;
  set |= kArchAvx512;
  const bool vnni = c >> 11 & 1;
  if (vnni) set |= kArchAvx512Vnni | (c >> 1 & 1 ? kArchAvx512Vbmi : 0);
  uint32_t a1, b1, c1, d1;
  if (vnni && a >= 1 && __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) && (a1 >> 5 & 1))
    set |= kArchAvx512Bf16;
  const bool tiles = (state & 0x60000) == 0x60000;  // tile configuration and data
  const bool amx = d >> 24 & 1, amx_int8 = d >> 25 & 1, amx_bf16 = d >> 22 & 1;
  const ArchSet rest = kArchAvx512Vnni | kArchAvx512Bf16;
  if (tiles && amx && amx_int8 && amx_bf16 && (set & rest) == rest && ask_for_tiles()) {
    set |= kArchAmx;
  }
  return set;
}

static void brand(char (&out)[96]) {
  uint32_t words[12] = {};
  for (uint32_t i = 0; i < 3; ++i) {
    __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2],
                &words[4 * i + 3]);
  }
  char text[49] = {};
  std::memcpy(text, words, 48);
  char* start = text;
  while (*start == ' ') ++start;
  for (size_t n = std::strlen(start); n > 0 && start[n - 1] == ' '; --n) start[n - 1] = 0;
  // Hypervisors leave out the number of the product, and the generations of one name differ.
  uint32_t a = 0, b, c, d;
  __get_cpuid(1, &a, &b, &c, &d);
  const uint32_t base = a >> 8 & 15, family = base == 15 ? base + (a >> 20 & 255) : base;
  const uint32_t model = (a >> 4 & 15) | (base == 15 || base == 6 ? a >> 12 & 0xF0 : 0);
  std::snprintf(out, sizeof out, "%s (family %u, model %u)", start, family, model);
}
#else
ArchSet detect_cpu() { return kArchCpu; }
static void brand(char (&out)[96]) { std::snprintf(out, sizeof out, "CPU"); }
#endif

ArchSet detect_gpu(int major, int minor) {
  const int sm = major * 10 + minor;
  ArchSet set = 0;
  for (const ArchRow& row : kArchs) {
    if (row.sm_min > 0 && sm >= row.sm_min && sm <= row.sm_max) set |= row.bit;
  }
  return set;
}

ArchSet cap_arch(ArchSet found, const char* name) {
  if (name == nullptr || *name == 0) return found;
  for (const ArchRow& row : kArchs) {
    if (std::strcmp(row.name, name) != 0) continue;
    ArchSet same_kind = 0;
    for (const ArchRow& other : kArchs) {
      if ((other.sm_min > 0) == (row.sm_min > 0)) same_kind |= other.bit;
    }
    return found & (~same_kind | row.bit | row.implied);
  }
  return found;
}

CpuInfo cpu_info(const char* root) {
  CpuInfo info = {};
  brand(info.name);
  cpu_set_t set;
  CPU_ZERO(&set);
  int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  const double quota = cgroup_cores(root);
  if (quota < cores) cores = static_cast<int>(std::floor(quota));
  info.cores = cores < 1 ? 1 : cores;
  info.memory = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  const long l2 = sysconf(_SC_LEVEL2_CACHE_SIZE), l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
  info.l2 = l2 > 0 ? l2 : 0;
  info.l3 = l3 > 0 ? l3 : 0;
  return info;
}

}  // namespace lowbit
