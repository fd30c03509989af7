// kv_sm75: append, read, copies, save and restore of a paged cache on the device.
//
// Shapes    all of kv.h.
// Layout    any strides that the contract allows; 16-byte accesses where rows are aligned.
// Bound     memory: k and v read once, their codes written once.
// Method    append: append_sm75.cuh where rows are whole. Else a key or a value of one head is a
// group's
//           of up to 32 lanes, each with eight elements of the first half of the dimensions and the
//           eight that stand as far in the second; partners of RoPE are read from memory. Range and
//           finiteness go round the group by shuffles. What is not append is a loop over bytes or
//           numbers. A number out of range is reported, its token left alone.
// Source    the formulas in kv.h and csrc/attention/cache.h.
// Measured  NOTES.md.
#include "csrc/attention/decode_sm75.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/kv/append_sm75.cuh"
#include "csrc/kv/encode.h"
#include "csrc/kv/kv.h"

namespace lowbit {
namespace {

constexpr int kThreads = 256;

__device__ int32_t number_of(const Tensor& t, int64_t i) {
  return static_cast<const int32_t*>(t.data)[i];
}

// Reports a slot that is none; -1 is one where `leaves_out`.
__device__ bool is_slot(const KvArgs& a, int64_t i, int32_t slot, bool leaves_out, bool reports,
                        unsigned long long* check) {
  if (slot >= 0 && slot < kv_slots(a.cache)) return true;
  if (reports && check != nullptr && !(leaves_out && slot == -1)) report(check, i, slot);
  return false;
}

// ---- append
// --------------------------------------------------------------------------------------

// Sixteen elements of a row: eight from `first` on and eight from `half + first` on.
struct Part {
  int64_t first, half;  // of a row of dim, half = (dim + 1) / 2
  int low, high;        // how many are there
};

__device__ Part part_at(int64_t dim, int64_t index) {
  Part p = {index * kEight, (dim + 1) / 2, 0, 0};
  const auto cut = [](int64_t left) {
    return static_cast<int>(left < 0 ? 0 : left < kEight ? left : kEight);
  };
  p.low = cut(p.half - p.first);
  p.high = cut(dim - p.half - p.first);
  return p;
}

// One element of a turned key, from memory.
__device__ float turned_at(const KvArgs& a, int64_t from, const float* cos, const float* sin,
                           int64_t e) {
  const int64_t pairs = a.cos.shape[1];
  const auto x = [&](int64_t i) { return load_f32(a.k.data, a.k.dtype, from + i); };
  if (e >= 2 * pairs) return x(e);
  if (a.pairing == Pairing::half) {
    const int64_t i = e < pairs ? e : e - pairs;
    return e < pairs ? turned_first(x(i), x(i + pairs), cos[i], sin[i])
                     : turned_second(x(i), x(i + pairs), cos[i], sin[i]);
  }
  const int64_t i = e / 2;
  return e % 2 == 0 ? turned_first(x(e), x(e + 1), cos[i], sin[i])
                    : turned_second(x(e - 1), x(e), cos[i], sin[i]);
}

__device__ void turn(const KvArgs& a, int64_t from, int64_t position, const Part& p,
                     float (&low)[kEight], float (&high)[kEight]) {
  const auto* cos = static_cast<const float*>(a.cos.data) + position * a.cos.strides[0];
  const auto* sin = static_cast<const float*>(a.sin.data) + position * a.sin.strides[0];
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    if (i < p.low) low[i] = turned_at(a, from, cos, sin, p.first + i);
    if (i < p.high) high[i] = turned_at(a, from, cos, sin, p.half + p.first + i);
  }
}

__device__ uint8_t code_of(KvFormat f, float x, const KvScale& s) {
  const float y = __fmul_rn(x, s.inverse);
  switch (f) {
    case KvFormat::int8: return static_cast<uint8_t>(kv_whole(y, -127.0f, 127.0f));
    case KvFormat::int4:
      return static_cast<uint8_t>(kv_whole(__fmaf_rn(x, s.inverse, s.zero_point), 0.0f, 15.0f));
    default: return f32_to_e4m3(y);
  }
}

__device__ void store_bytes(uint8_t* to, const uint8_t (&codes)[kEight], int count) {
  if (count >= kEight && (reinterpret_cast<uintptr_t>(to) & 7) == 0) {
    uint2 words = {0, 0};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words.x |= static_cast<uint32_t>(codes[i]) << (8 * i);
      words.y |= static_cast<uint32_t>(codes[i + 4]) << (8 * i);
    }
    *reinterpret_cast<uint2*>(to) = words;
    return;
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    if (i < count) to[i] = codes[i];
  }
}

__device__ void store_part(const KvRow& row, const Part& p, const KvScale& s, bool finite,
                           const float (&low)[kEight], const float (&high)[kEight]) {
  if (is_float(row.format)) {
    const DType dtype = kv_dtype(row.format);
    store_eight(row.codes, dtype, p.first, p.low, low);
    store_eight(row.codes, dtype, p.half + p.first, p.high, high);
    return;
  }
  uint8_t a[kEight], b[kEight];
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    a[i] = finite ? code_of(row.format, low[i], s) : uint8_t{0};
    b[i] = finite ? code_of(row.format, high[i], s) : uint8_t{0};
  }
  if (row.format == KvFormat::int4) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) a[i] = static_cast<uint8_t>(a[i] | b[i] << 4);
    store_bytes(row.codes + p.first, a, p.low);
    return;
  }
  store_bytes(row.codes + p.first, a, p.low);
  store_bytes(row.codes + p.half + p.first, b, p.high);
}

// A group of `lanes` threads, a power of two up to 32, for each key and each value of a head;
// kParts parts of a row for each of them.
template <int kParts>
__global__ void __launch_bounds__(kThreads)
    append(const __grid_constant__ KvArgs a, unsigned lanes, unsigned long long* check) {
  wait_for_others();
  const KvCache& c = a.cache;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t item = thread / lanes, lane = thread - item * lanes;
  const int64_t token = item / (2 * c.kv_heads);
  const int64_t rest = item - token * 2 * c.kv_heads, head = rest % c.kv_heads;
  const bool of_values = rest >= c.kv_heads, turns = !of_values && present(a.cos);
  if (token >= a.slots.shape[0]) return;  // whole groups: those who stay shuffle among themselves
  const unsigned group =
      lanes == 32 ? ~0u : ((1u << lanes) - 1) << (threadIdx.x & 31 & ~(lanes - 1));
  const int32_t slot = number_of(a.slots, token);
  const bool first = lane == 0 && rest == 0;
  if (!is_slot(a, token, slot, true, first, check)) return;
  const int32_t position = turns ? number_of(a.positions, token) : 0;
  if (turns && (position < 0 || position >= a.cos.shape[0])) {
    if (first && check != nullptr) report(check, kOfPositions + token, position);
    return;
  }
  const Tensor& t = of_values ? a.v : a.k;
  const int64_t dim = t.shape[2], from = token * t.strides[0] + head * t.strides[1];
  float low[kParts][kEight], high[kParts][kEight];
  float least = 0.0f, most = 0.0f;
  unsigned bad = 0;
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const Part p = part_at(dim, lane + i * lanes);
    load_eight(t.data, t.dtype, from + p.first, p.low, low[i]);
    load_eight(t.data, t.dtype, from + p.half + p.first, p.high, high[i]);
    if (turns) turn(a, from, position, p, low[i], high[i]);
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      least = fminf(least, fminf(low[i][j], high[i][j]));
      most = fmaxf(most, fmaxf(low[i][j], high[i][j]));
      bad |= (float_bits(low[i][j]) & 0x7fffffffu) >= 0x7f800000u;
      bad |= (float_bits(high[i][j]) & 0x7fffffffu) >= 0x7f800000u;
    }
  }
  const KvRow row = kv_row_at(c, slot, head, of_values);
  KvScale s = {};
  if (!is_float(row.format)) {
    for (unsigned step = lanes / 2; step > 0; step /= 2) {
      least = fminf(least, __shfl_xor_sync(group, least, step));
      most = fmaxf(most, __shfl_xor_sync(group, most, step));
      bad |= __shfl_xor_sync(group, bad, step);
    }
    s = kv_scale_of(row.format, least, most, bad == 0);
    if (lane == 0) {
      *reinterpret_cast<uint16_t*>(row.scale) = s.scale;
      if (row.format == KvFormat::int4) *reinterpret_cast<uint16_t*>(row.zero) = s.zero;
    }
  }
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    store_part(row, part_at(dim, lane + i * lanes), s, bad == 0, low[i], high[i]);
  }
}

Status run_append(const KvArgs& a, const Ctx& ctx) {
  if (is_whole(a)) return run_whole(a, ctx);
  const KvCache& c = a.cache;
  const int64_t dim = c.head_dim > c.head_dim_v ? c.head_dim : c.head_dim_v;
  const int64_t parts = ((dim + 1) / 2 + kEight - 1) / kEight;
  unsigned lanes = 1;
  while (lanes < 32 && lanes < parts) lanes *= 2;
  const int64_t threads = a.slots.shape[0] * c.kv_heads * 2 * lanes;
  const unsigned blocks = grid_for(threads, kThreads, INT32_MAX);
  return launch(ctx, parts <= 32 ? append<1> : append<2>, blocks, kThreads, 0, a, lanes, ctx.check);
}

// ---- the others
// ----------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads)
    read(const __grid_constant__ KvArgs a, unsigned long long* check) {
  const KvCache& c = a.cache;
  const int64_t rows = a.slots.shape[0] * c.kv_heads * 2;
  for (int64_t at = blockIdx.x; at < rows; at += gridDim.x) {
    const int64_t token = at / (2 * c.kv_heads), rest = at - token * 2 * c.kv_heads;
    const int64_t head = rest % c.kv_heads;
    const bool of_values = rest >= c.kv_heads;
    const int32_t slot = number_of(a.slots, token);
    if (!is_slot(a, token, slot, false, rest == 0 && threadIdx.x == 0, check)) continue;
    const Tensor& t = of_values ? a.v : a.k;
    float* out = static_cast<float*>(t.data) + token * t.strides[0] + head * t.strides[1];
    const KvNumbers from = kv_numbers(kv_row_at(c, slot, head, of_values));
    for (int64_t d = threadIdx.x; d < t.shape[2]; d += kThreads) {
      out[d] = kv_number(from, t.shape[2], d);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    copy_pages(const __grid_constant__ KvArgs a, unsigned long long* check) {
  const KvCache& c = a.cache;
  const int64_t words = c.kv_heads * c.page.bytes / 16;  // the heads of a page lie together
  for (int64_t i = blockIdx.y; i < a.slots.shape[0]; i += gridDim.y) {
    const int32_t from = number_of(a.slots, i), to = number_of(a.to, i);
    const bool from_bad = from < 0 || from >= c.pages, to_bad = to < 0 || to >= c.pages;
    if (from_bad || to_bad) {
      if (check != nullptr && blockIdx.x == 0 && threadIdx.x == 0) {
        report(check, from_bad ? i : kOfTo + i, from_bad ? from : to);
      }
      continue;
    }
    const auto* source = reinterpret_cast<const uint4*>(kv_page(c, from, 0));
    auto* target = reinterpret_cast<uint4*>(kv_page(c, to, 0));
    for (int64_t w = int64_t{blockIdx.x} * kThreads + threadIdx.x; w < words;
         w += int64_t{gridDim.x} * kThreads) {
      target[w] = source[w];
    }
  }
}

__device__ int64_t move_bytes(uint8_t* stored, uint8_t* saved, int64_t bytes, bool save) {
  for (int64_t i = threadIdx.x; i < bytes; i += kThreads)
    (save ? saved : stored)[i] = (save ? stored : saved)[i];
  return bytes;
}

__global__ void __launch_bounds__(kThreads)
    save_restore(const __grid_constant__ KvArgs a, int64_t width, unsigned long long* check) {
  const KvCache& c = a.cache;
  const bool save = a.op == KvOp::save;
  for (int64_t i = blockIdx.x; i < a.slots.shape[0]; i += gridDim.x) {
    const int32_t slot = number_of(a.slots, i);
    if (!is_slot(a, i, slot, !save, threadIdx.x == 0, check)) continue;
    auto* row = static_cast<uint8_t*>(a.bytes.data) + i * a.bytes.strides[0];
    const auto format = static_cast<int32_t>(kv_slot_format(c, slot));
    if (save) {
      for (int64_t d = threadIdx.x; d < kKvSavedHead; d += kThreads) {
        row[d] = d < 4 ? static_cast<uint8_t>(format >> (8 * d)) : uint8_t{0};
      }
    } else {
      const int32_t word = row[0] | row[1] << 8 | row[2] << 16 | row[3] << 24;
      if (word != format) {
        if (check != nullptr && threadIdx.x == 0) report(check, kOfSavedFormat + i, word);
        continue;
      }
    }
    int64_t at = kKvSavedHead;
    for (int64_t part = 0; part < 2 * c.kv_heads; ++part) {
      const bool of_values = part % 2 == 1;
      const KvRow from = kv_row_at(c, slot, part / 2, of_values);
      const int64_t dim = of_values ? c.head_dim_v : c.head_dim;
      at += move_bytes(from.codes, row + at, kv_row_bytes(from.format, dim), save);
      if (kv_format_row(from.format).scales) at += move_bytes(from.scale, row + at, 2, save);
      if (kv_format_row(from.format).zeros) at += move_bytes(from.zero, row + at, 2, save);
    }
    for (int64_t d = at + threadIdx.x; save && d < width; d += kThreads) row[d] = 0;
  }
}

Status run(const KvArgs& a, const Ctx& ctx) {
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  const int64_t count = a.slots.shape[0];
  switch (a.op) {
    case KvOp::append: return run_append(a, ctx);
    case KvOp::read:
      read<<<grid_for(count * a.cache.kv_heads * 2, 1, 1 << 20), kThreads, 0, stream>>>(a,
                                                                                        ctx.check);
      break;
    case KvOp::copy_pages: {
      const int64_t words = a.cache.kv_heads * a.cache.page.bytes / 16;
      const dim3 grid(grid_for(words, 4 * kThreads, 64), grid_for(count, 1, 4096));
      copy_pages<<<grid, kThreads, 0, stream>>>(a, ctx.check);
      break;
    }
    default:
      save_restore<<<grid_for(count, 1, 1 << 20), kThreads, 0, stream>>>(a, kv_saved_bytes(a.cache),
                                                                         ctx.check);
  }
  return launched();
}

}  // namespace

extern const KvKernel kv_sm75;
const KvKernel kv_sm75 = {"kv_sm75", kArchSm75, {kFloats}, nullptr, run};

}  // namespace lowbit
