// Arch: one bit set for the instruction sets of CPUs and the compute capabilities of GPUs.
// A device carries the bits it has; a kernel row names the bits it needs.
#pragma once

#include <cstdint>

namespace lowbit {

using ArchSet = uint32_t;

inline constexpr ArchSet kArchCpu = 1u << 0;         // any CPU: the reference rows
inline constexpr ArchSet kArchAvx2 = 1u << 1;        // AVX2, FMA, F16C
inline constexpr ArchSet kArchAvx512 = 1u << 2;      // AVX-512 F, BW, DQ, VL
inline constexpr ArchSet kArchAvx512Vnni = 1u << 3;  // and VNNI
inline constexpr ArchSet kArchAvx512Bf16 = 1u << 4;  // and VNNI and BF16
inline constexpr ArchSet kArchAvx512Vbmi = 1u << 5;  // and VNNI and VBMI
inline constexpr ArchSet kArchAmx =
    1u << 6;  // AMX tiles of int8 and bf16, with AVX-512, VNNI and BF16
inline constexpr ArchSet kArchSm75 = 1u << 16;   // compute capability 7.5 and newer
inline constexpr ArchSet kArchSm80 = 1u << 17;   // 8.0 and newer
inline constexpr ArchSet kArchSm89 = 1u << 18;   // 8.9 and newer
inline constexpr ArchSet kArchSm90a = 1u << 19;  // 9.0 exactly

struct ArchRow {
  const char* name;  // the suffix of kernel files and the word of LB_ARCH
  ArchSet bit;
  ArchSet implied;         // what every machine with this bit has too
  int32_t sm_min, sm_max;  // GPUs: range of compute capability * 10; CPUs: 0, 0
};

inline constexpr ArchRow kArchs[] = {
    {"cpu", kArchCpu, 0, 0, 0},
    {"avx2", kArchAvx2, kArchCpu, 0, 0},
    {"avx512", kArchAvx512, kArchCpu | kArchAvx2, 0, 0},
    {"avx512vnni", kArchAvx512Vnni, kArchCpu | kArchAvx2 | kArchAvx512, 0, 0},
    {"avx512bf16", kArchAvx512Bf16, kArchCpu | kArchAvx2 | kArchAvx512 | kArchAvx512Vnni, 0, 0},
    {"avx512vbmi", kArchAvx512Vbmi, kArchCpu | kArchAvx2 | kArchAvx512 | kArchAvx512Vnni, 0, 0},
    {"amx", kArchAmx,
     kArchCpu | kArchAvx2 | kArchAvx512 | kArchAvx512Vnni | kArchAvx512Vbmi | kArchAvx512Bf16, 0,
     0},
    {"sm75", kArchSm75, 0, 75, 9999},
    {"sm80", kArchSm80, kArchSm75, 80, 9999},
    {"sm89", kArchSm89, kArchSm75 | kArchSm80, 89, 9999},
    {"sm90a", kArchSm90a, kArchSm75 | kArchSm80 | kArchSm89, 90, 90},
};
inline constexpr int kArchCount = sizeof kArchs / sizeof kArchs[0];

static inline const ArchRow* find_arch(ArchSet bit) {
  for (const ArchRow& row : kArchs) {
    if (row.bit == bit) return &row;
  }
  return nullptr;
}
// The bits of `set` and all that they imply.
static inline ArchSet with_implied(ArchSet set) {
  for (const ArchRow& row : kArchs) {
    if ((set & row.bit) != 0) set |= row.implied;
  }
  return set;
}

// What this CPU and its operating system can run (CPUID and XGETBV).
ArchSet detect_cpu();
// The bits of a GPU of compute capability major.minor.
ArchSet detect_gpu(int major, int minor);
// `found` without what LB_ARCH=<name> excludes: what that row implies and the row itself stay. An
// unknown name or null changes nothing. The same call serves both kinds of device: a name of the
// other kind is ignored.
ArchSet cap_arch(ArchSet found, const char* name);

struct CpuInfo {
  char name[96];  // brand string, family and model
  int32_t cores;  // usable by this process: affinity, cut by the cgroup's quota (whole cores of it)
  int64_t memory;  // bytes of RAM
  int64_t l2, l3;  // bytes; 0 where unknown
};
// `root` stands before /proc and /sys where the quota is read: empty but in tests.
CpuInfo cpu_info(const char* root = "");

}  // namespace lowbit
