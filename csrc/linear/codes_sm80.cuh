// tile_sm80.cuh for weights as they are saved, of any kind whose codes are exact in f16 and bf16:
// 1 to 8 bits, with scales and zero points of groups.
//
// A thread copies 32 codes of one row of w to the ring and, a stage later, turns the same codes
// into 16-bit floats by a table in shared memory of 2^bits values. (Tables of up to 64 entries have
// no two words in one bank, so lookups do not wait for each other.) They go to one swizzled tile,
// which the warps read as they read weights of 16 bits. Scales and zeros are asked for a stage
// ahead. The products of a group are added in the tensor core, their sum enters the total times its
// scale.
#pragma once

#include "csrc/format/layout.h"
#include "csrc/linear/decode_int4.cuh"
#include "csrc/linear/tile_sm80.cuh"

namespace lowbit {
namespace {

inline constexpr int kCodesMultiple = 128;  // of K: rows of 1-bit codes are whole 16 bytes then

template <bool kHalf>
struct CodesW {
  using Sum = float;
  static constexpr int kBytes = kTileRows * 64;  // of codes, up to 8 bits
  static constexpr int kTile = kTileRows * 128, kScales = 4 * kTileRows * 4, kTable = 256 * 2;
  static constexpr int kBeside = kTile + kScales + kTable;
  static constexpr bool kScaled = true, kPrepares = true;
  struct Call {
    const uint8_t* data;  // rows begin at multiples of 16 bytes
    const uint8_t* scales;
    const uint8_t* zeros;  // u8, or null
    int64_t row_bytes;
    int32_t rows, bits;
    int32_t group_n, group_k, groups;  // groups: of a row
    int32_t group_steps;               // of 16 of K, at most those of a stage
    Kind kind;
    DType scale_dtype;
    float tensor_scale;
  };

  const Call& call;
  const int row;  // of w, whose codes this thread turns into floats
  uint8_t* const sTile;
  float scales[2];  // of the thread's codes of the next stage; two where groups are 16 wide
  uint32_t zero;    // twice in 16 bits

  __device__ __forceinline__ CodesW(const Call& c, int row0, uint8_t* beside)
      : call(c), row(row0 + threadIdx.x / 2), sTile(beside) {
    if (threadIdx.x < 1 << c.bits) {
      float v = decode_code(c.kind, threadIdx.x);
      if (c.zeros == nullptr && kind_row(c.kind).affine) v -= kind_row(c.kind).mid;
      table()[threadIdx.x] = kHalf ? f32_to_half(v) : f32_to_bf16(v);
    }
    first = true;
  }
  bool first;

  __device__ __forceinline__ float* scale_tile() const {  // (4 groups, kTileRows)
    return reinterpret_cast<float*>(sTile + kTile);
  }
  __device__ __forceinline__ uint16_t* table() const {
    return reinterpret_cast<uint16_t*>(sTile + kTile + kScales);
  }

  template <int kPiece>
  __device__ __forceinline__ void copy(const uint8_t* from, uint32_t to, int count) const {
    for (int i = 0; i < count; ++i) {
      cp_async<kPiece>(to + i * kPiece, from + i * kPiece, true);
    }
  }
  __device__ __forceinline__ void load(int stage, uint8_t* sW) const {
    if (row >= call.rows) return;
    const int own = 4 * call.bits, half = threadIdx.x % 2;  // bytes of 32 codes
    const uint8_t* const from = call.data + row * call.row_bytes + (stage * 2 + half) * own;
    const uint32_t to = smem_address(sW) + threadIdx.x * own;
    switch (call.bits) {
      case 8: return copy<16>(from, to, 2);
      case 6: return copy<8>(from, to, 3);
      case 4: return copy<16>(from, to, 1);
      case 3: return copy<4>(from, to, 3);
      case 2: return copy<8>(from, to, 1);
      default: return copy<4>(from, to, 1);
    }
  }

  __device__ __forceinline__ void ask(int stage) {
    const int k = stage * 64 + threadIdx.x % 2 * 32;
    const int64_t at = int64_t{min(row, call.rows - 1) / call.group_n} * call.groups;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i > 0 && call.group_steps > 1) break;
      const int64_t index = at + (k + i * 16) / call.group_k;
      scales[i] = load_f32(call.scales, call.scale_dtype, index) * call.tensor_scale;
    }
    if (call.zeros == nullptr) return;
    const float z = call.zeros[at + k / call.group_k];
    zero = (kHalf ? f32_to_half(z) : f32_to_bf16(z)) * 0x10001u;
  }

  template <int kBits>
  __device__ __forceinline__ void decode_row(const uint8_t* sW) const {
    uint32_t words[kBits];
    const uint32_t* const from = reinterpret_cast<const uint32_t*>(sW) + threadIdx.x * kBits;
#pragma unroll
    for (int i = 0; i < kBits; ++i) words[i] = from[i];
    const uint16_t* const values = table();
    const int r = threadIdx.x / 2, c = threadIdx.x % 2 * 4;
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk) {
      uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t v[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int bit = (chunk * 8 + j * 2 + h) * kBits, word = bit / 32, shift = bit % 32;
          uint32_t code = words[word] >> shift;
          if (shift + kBits > 32) code |= words[(word + 1) % kBits] << (32 - shift);
          v[h] = values[code & ((1u << kBits) - 1)];
        }
        pairs[j] = v[0] | v[1] << 16;
        if (call.zeros != nullptr) {
          pairs[j] = kHalf ? subtract_f16(pairs[j], zero) : subtract_bf16(pairs[j], zero);
        }
      }
      *reinterpret_cast<uint4*>(sTile + swizzled(r, (c + chunk) * 16)) = {pairs[0], pairs[1],
                                                                          pairs[2], pairs[3]};
    }
  }

  __device__ __forceinline__ void prepare(int stage, const uint8_t* sW, bool more) {
    if (first) ask(stage);
    first = false;
    const int half = threadIdx.x % 2;
    float* const to = scale_tile() + threadIdx.x / 2;
    if (call.group_steps == 1) {
      to[half * 2 * kTileRows] = scales[0];
      to[(half * 2 + 1) * kTileRows] = scales[1];
    } else if (call.group_steps == 2 || half == 0) {
      to[half * kTileRows] = scales[0];
    }
    switch (call.bits) {
      case 8: decode_row<8>(sW); break;
      case 6: decode_row<6>(sW); break;
      case 4: decode_row<4>(sW); break;
      case 3: decode_row<3>(sW); break;
      case 2: decode_row<2>(sW); break;
      default: decode_row<1>(sW); break;
    }
    if (more) ask(stage + 1);
  }
  __device__ __forceinline__ void begin(const uint8_t*, int) {}
  __device__ __forceinline__ void fragment(const uint8_t*, int step, int strip, int,
                                           uint32_t (&a)[4]) const {
    const int lane = threadIdx.x % 32;
    ldmatrix(smem_address(sTile) + swizzled(strip * 16 + lane % 16, step * 32 + lane / 16 * 16),
             a[0], a[1], a[2], a[3]);
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
    mma_16bit<kHalf>(d, a, b0, b1);
  }
  __device__ __forceinline__ bool ends(int step) const {
    return ((step + 1) & (call.group_steps - 1)) == 0;
  }
  __device__ __forceinline__ void scale(const uint8_t*, int step, int strip,
                                        float (&scale)[2]) const {
    const int group = call.group_steps == 4 ? 0 : call.group_steps == 2 ? step / 2 : step;
    const float* const at = scale_tile() + group * kTileRows + strip * 16 + threadIdx.x % 32 / 4;
    scale[0] = at[0];
    scale[1] = at[8];
  }
};

template <bool kHalf>
static Status run_codes_sm80(const LinearArgs& args, const Ctx& ctx) {
  const Weight& w = args.w;
  const Format& f = w.format;
  const Shape s = {w.n, w.k};
  typename CodesW<kHalf>::Call call = {};
  call.data = w.data;
  call.scales = w.data + scale_at(w.layout, f, s, 0, 0);
  call.zeros = f.zero_type == ZeroType::none ? nullptr : w.data + zero_at(w.layout, f, s, 0, 0);
  call.row_bytes = code_row_bytes(f.kind, w.k);
  call.rows = static_cast<int32_t>(w.n);
  call.bits = kind_row(f.kind).bits;
  call.group_n = static_cast<int32_t>(f.group_n);
  call.group_k = static_cast<int32_t>(f.group_k);
  call.groups = static_cast<int32_t>(scale_cols(f, w.k));
  call.group_steps = f.group_k >= 64 ? 4 : static_cast<int32_t>(f.group_k / 16);
  call.kind = f.kind;
  call.scale_dtype = f.scale_dtype;
  call.tensor_scale = w.tensor_scale;
  return run_tiles<CodesW<kHalf>>(args, call, finish_of(args, nullptr), ctx);
}

// Every code of these, less a zero point of whole steps, is a f16 and a bf16.
inline constexpr KindSet kCodesKinds =
    bit(Kind::int8) | bit(Kind::int4) | bit(Kind::int3) | bit(Kind::int2) | bit(Kind::int1) |
    bit(Kind::ternary) | bit(Kind::fp8_e4m3) | bit(Kind::fp8_e5m2) | bit(Kind::mxfp8_e4m3) |
    bit(Kind::mxfp8_e5m2) | bit(Kind::mxfp6_e2m3) | bit(Kind::mxfp6_e3m2) | bit(Kind::mxfp4) |
    bit(Kind::mxint8) | bit(Kind::nvfp4);

static constexpr LinearSpec codes_spec(DType x) {
  return {.kinds = kCodesKinds,
          .layouts = bit(Layout::rows),
          .x = bit(x),
          .computes = bit(Compute::floating),
          .zeros = true,
          .m_max = 0,
          .n_multiple = 1,
          .k_multiple = kCodesMultiple,
          .group_multiple = 16,
          .float_zeros = false,
          .planes = true};
}

}  // namespace
}  // namespace lowbit
