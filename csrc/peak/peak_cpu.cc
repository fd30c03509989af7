// peak_*_cpu: the peaks of plain C++ with the compiler's baseline flags: what the reference rows
// are held against, and the figures of machines without rows of their own.
#include <cstring>

#include "csrc/peak/pass.h"

namespace lowbit {
namespace {

// As wide as the baseline's vectors (SSE2, NEON), which every compiler of this project has.
typedef float F4 __attribute__((vector_size(16)));
typedef uint64_t U2 __attribute__((vector_size(16)));
typedef int16_t S8 __attribute__((vector_size(16)));
typedef int32_t S4 __attribute__((vector_size(16)));

// Makes the compiler take a value for unknown: loops whose result nobody needs would be dropped,
// and products of constants computed once.
template <class T>
void hide(T& value) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(value));
#else
  asm volatile("" : "+w"(value));
#endif
}

Status read(const PeakArgs& args, const Ctx& ctx) {
  return read_pass(args, ctx, [](const uint8_t* data, int64_t bytes) {
    U2 sum[8] = {};
    for (int64_t b = 0; b < bytes; b += 128) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) sum[i] ^= *reinterpret_cast<const U2*>(data + b + 16 * i);
    }
    for (U2& s : sum) hide(s);
  });
}

Status copy(const PeakArgs& args, const Ctx& ctx) {
  return copy_pass(args, ctx, [](uint8_t* to, const uint8_t* from, int64_t bytes) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  });
}

// 12 chains: a multiply and an add of 3 to 4 cycles each, two of each in a cycle at most.
constexpr int kChains = 12;

Status multiply_add_f32(const PeakArgs& args, const Ctx& ctx) {
  return round_pass(args, ctx, [](int64_t rounds) {
    F4 acc[kChains] = {}, a = {1, 2, 3, 4}, b = {1e-9f, 1e-9f, 1e-9f, 1e-9f};
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) {
        hide(a);
        acc[i] += a * b;
      }
    }
    for (F4& v : acc) hide(v);
  });
}

// 16-bit products, widened and summed in 32 bits, as compilers make of a plain loop over bytes.
Status multiply_add_int8(const PeakArgs& args, const Ctx& ctx) {
  return round_pass(args, ctx, [](int64_t rounds) {
    S4 acc[8] = {};
    S8 a = {1, 2, 3, 4, 5, 6, 7, 8}, b = {1, 1, 1, 1, 1, 1, 1, 1};
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < 8; i += 2) {
        hide(a);
        const S8 p = a * b;
        acc[i] += __builtin_convertvector(__builtin_shufflevector(p, p, 0, 1, 2, 3), S4);
        acc[i + 1] += __builtin_convertvector(__builtin_shufflevector(p, p, 4, 5, 6, 7), S4);
      }
    }
    for (S4& v : acc) hide(v);
  });
}

}  // namespace

extern const PeakKernel peak_read_cpu = {
    "peak_read_cpu", kArchCpu, {Quantity::read, 0}, nullptr, read};
extern const PeakKernel peak_copy_cpu = {
    "peak_copy_cpu", kArchCpu, {Quantity::copy, 0}, nullptr, copy};
extern const PeakKernel peak_f32_cpu = {
    "peak_f32_cpu", kArchCpu, {Quantity::f32, kChains * 4 * 2}, nullptr, multiply_add_f32};
extern const PeakKernel peak_int8_cpu = {
    "peak_int8_cpu", kArchCpu, {Quantity::int8, 4 * 8 * 2}, nullptr, multiply_add_int8};

}  // namespace lowbit
