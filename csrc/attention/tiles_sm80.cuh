// What a block of attention_*_sm80 works on, and how keys and values come to shared memory.
//
// A row is a query token and one of the query heads that share a kv head: row r of a sequence is
// token r / group and head r % group. An item is kRows consecutive rows of a sequence and one kv
// head. Its keys are walked in tiles of kKeys positions, multiples of eight from the first on:
// eight tokens never lie on two pages. A sequence with a prefix has tiles of it first, then those
// of its pages; where the two meet, both have a tile of the same positions, each with its own keys.
//
// A tile of keys or values stands in shared memory as kKeys rows of kDim operands, 16 bytes apart
// from a multiple of 128, so that eight rows at one element lie in eight groups of banks. Elements
// beyond the head dim and keys that are not there are zeros.
//
//   numbers    16 bytes a thread by cp.async; element by element where rows are not aligned
//   codes      eight tokens of a page, which follow each other, by cp.async as they are, their
//              scales and zeros beside them; then made operands: the code itself, less the rounded
//              zero for int4. The scale and what is left of the zero meet the scores and the
//              weights
#pragma once

#include "csrc/attention/row_sm75.cuh"
#include "csrc/cuda/cp_async.cuh"
#include "csrc/cuda/pairs.cuh"

namespace lowbit {
namespace {

// Pages of 2048 positions, in eights.
inline constexpr int kPageWindow = 256;

// kHalf: operands in f16, else bf16. A warp has kTiles times 16 rows and kKeys / kWarpsN keys of a
// tile. kCodes: pages of codes. kPlain: scores are scaled products and nothing else.
template <bool kHalfOf, int kDimOf, int kTilesOf, int kWarpsMOf, int kWarpsNOf, int kKeysOf,
          bool kCodesOf, bool kPlainOf = false>
struct Form {
  static constexpr bool kHalf = kHalfOf, kCodes = kCodesOf, kPlain = kPlainOf;
  static constexpr int kDim = kDimOf, kTiles = kTilesOf, kKeys = kKeysOf;
  static constexpr int kWarpsM = kWarpsMOf, kWarpsN = kWarpsNOf, kWarps = kWarpsM * kWarpsN;
  static constexpr int kThreads = 32 * kWarps, kRows = 16 * kTiles * kWarpsM;
  static constexpr int kOwn = kKeys / kWarpsN;  // keys of a warp
  static constexpr int kColumns = kOwn / 8, kSteps = kDim / 16, kParts = kDim / 8;
  // bf16 has too few bits for a weight times a scale: both halves of it are multiplied.
  static constexpr bool kTwo = kCodes && !kHalf;
  static constexpr int kStride = 2 * kDim + 16;  // bytes of a row in shared memory
  static constexpr int kPassStride = kDim + 4;   // floats of a row of sums
  static constexpr int kTileBytes = kKeys * kStride;
  // Codes and, of eight tokens each, 16 bytes of scales and of zeros.
  static constexpr int kRawBytes = kCodes ? kKeys * kDim + 4 * kKeys : 0;
  // Codes become operands in turn, keys, then values, in one place.
  static constexpr int kQueryBytes = kRows * kStride;
  static constexpr int kRingBytes = kCodes ? kTileBytes + 2 * kRawBytes : 2 * kTileBytes;
  static constexpr int kPassBytes = kWarpsN > 1 ? 4 * kWarpsN* kRows* kPassStride : 0;
  static constexpr int kShared = kQueryBytes + (kRingBytes > kPassBytes ? kRingBytes : kPassBytes);
  static_assert(kOwn % 16 == 0 && kDim % 32 == 0);
};

struct Call {
  AttentionArgs args;
  float scale;
  int group;                                        // query heads of a kv head
  int heads;                                        // of kv
  int blocks;                                       // of rows, of each sequence of a batch
  int count;                                        // items of a kv head, at most
  int splits;                                       // of an item, at most
  bool transform;                                   // scores are more than scaled products
  bool aligned_q, aligned_k, aligned_v, aligned_o;  // rows begin at multiples of 16 bytes
  bool narrow;                                      // q in bf16 where operands are f16
  float* parts;                                     // [count][heads][splits][kRows][kPassStride]
  unsigned long long* check;
};

struct Item {
  Sequence s;
  int index, head, split, splits;
  int row0, rows;
  int begin, end;   // keys that some row sees
  int low, high;    // keys that all rows see
  int before;       // tiles of the prefix
  int first, last;  // tiles of this split
};

// A row of an item.
struct Row {
  int begin, end;  // keys that it sees
  int token, head;
  float position, slope;
  float scale;        // of a product
  const float* bias;  // of its keys
};

// Keys [lo, hi) of a tile whose first would be key0.
struct Tile {
  int key0, lo, hi;
  bool prefix;
};

// The sequence of item `index` and which block of its rows; false where there is none or lengths
// make no sense. By a warp, whose lanes look at 32 sequences at a time.
template <class F>
__device__ __forceinline__ bool find_rows(const Call& call, int index, int* b, int* block) {
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32;
  if (is_batched(a)) {
    // The last rows first: under a causal mask they see most.
    const int batch = static_cast<int>(a.q.shape[0]);
    *block = call.blocks - 1 - index / batch;
    *b = index % batch;
    return *block >= 0;
  }
  if (!present(a.cu_seqlens_q)) {
    *b = 0;
    *block = call.blocks - 1 - index;
    return *block >= 0;
  }
  const auto* cu = static_cast<const int32_t*>(a.cu_seqlens_q.data);
  const int batch = static_cast<int>(a.cu_seqlens_q.shape[0]) - 1;
  int left = index;
  for (int b0 = 0; b0 < batch; b0 += 32) {
    int own = 0;
    if (b0 + lane < batch) {
      const int from = cu[b0 + lane], to = cu[b0 + lane + 1];
      if (from >= 0 && to >= from && to <= a.q.shape[0]) {
        own = ((to - from) * call.group + F::kRows - 1) / F::kRows;
      }
    }
    int upto = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, upto, step);
      if (lane >= step) upto += other;
    }
    const unsigned behind = __ballot_sync(~0u, left < upto);
    if (behind == 0) {
      left -= __shfl_sync(~0u, upto, 31);
      continue;
    }
    const int who = __ffs(static_cast<int>(behind)) - 1;
    left -= __shfl_sync(~0u, upto - own, who);
    *b = b0 + who;
    *block = __shfl_sync(~0u, own, who) - 1 - left;
    return true;
  }
  return false;
}

__device__ __forceinline__ bool has_sense(const AttentionArgs& a, int b) {
  if (!is_batched(a) && !is_paged(a)) {
    const auto* cu = static_cast<const int32_t*>(present(a.cu_seqlens_kv) ? a.cu_seqlens_kv.data
                                                                          : a.cu_seqlens_q.data);
    if (cu != nullptr && (cu[b] < 0 || cu[b + 1] < cu[b] || cu[b + 1] > a.k.shape[0])) return false;
  }
  return !is_paged(a) || !has_prefix_fault(a, b);
}

template <class F>
__device__ __forceinline__ int tiles_between(int lo, int hi) {
  return lo < hi ? (hi - 1) / F::kKeys - lo / F::kKeys + 1 : 0;
}

template <class F>
__device__ __forceinline__ bool item_at(const Call& call, int64_t index, Item* t) {
  const AttentionArgs& a = call.args;
  int b, block;
  t->head = static_cast<int>(index % call.heads);
  index /= call.heads;
  t->split = static_cast<int>(index % call.splits);
  t->index = static_cast<int>(index / call.splits);
  if (!find_rows<F>(call, t->index, &b, &block) || !has_sense(a, b)) return false;
  t->s = sequence_at(a, b);
  const Sequence& s = t->s;
  if (s.seq_kv < 0 || s.seq_kv > seq_kv_bound(a)) return false;
  if (present(a.bias) && s.seq_kv > a.bias.shape[a.bias.rank - 1]) return false;
  t->row0 = block * F::kRows;
  const int left = static_cast<int>(s.seq_q) * call.group - t->row0;
  t->rows = left < F::kRows ? left : F::kRows;
  const Mask mask = make_mask(a.causal, a.window_left, a.window_right);
  const int64_t before = s.seq_kv - s.seq_q;
  const KeyRange first = visible_keys(mask, before + t->row0 / call.group, s.seq_kv);
  const KeyRange last = visible_keys(mask, before + (t->row0 + t->rows - 1) / call.group, s.seq_kv);
  t->begin = static_cast<int>(first.begin);
  t->end = static_cast<int>(last.end > first.begin ? last.end : first.begin);
  t->low = static_cast<int>(last.begin);
  t->high = static_cast<int>(first.end);
  const int cut = static_cast<int>(s.prefix_len < t->end ? s.prefix_len : t->end);
  t->before = tiles_between<F>(t->begin, cut);
  const int tiles = t->before + tiles_between<F>(t->begin > cut ? t->begin : cut, t->end);
  // A split has 128 keys at least, or its start costs more than it does.
  constexpr int kLeast = 128 / F::kKeys;
  const int most = tiles < kLeast ? 1 : tiles / kLeast;
  t->splits = call.splits < most ? call.splits : most;
  if (t->split >= t->splits) return false;
  t->first = static_cast<int>(int64_t{tiles} * t->split / t->splits);
  t->last = static_cast<int>(int64_t{tiles} * (t->split + 1) / t->splits);
  return true;
}

template <class F>
__device__ __forceinline__ Tile tile_at(const Item& t, int index) {
  Tile tile;
  const int prefix = static_cast<int>(t.s.prefix_len);
  tile.prefix = index < t.before;
  const int start = tile.prefix || t.begin > prefix ? t.begin : prefix;
  tile.key0 = (start / F::kKeys + index - (tile.prefix ? 0 : t.before)) * F::kKeys;
  tile.lo = start > tile.key0 ? start : tile.key0;
  const int stop = tile.prefix && prefix < t.end ? prefix : t.end;
  tile.hi = stop < tile.key0 + F::kKeys ? stop : tile.key0 + F::kKeys;
  return tile;
}

// ---- places ------------------------------------------------------------------------------------

// Pages of eight positions each from `first` on; -1: there is none.
struct Pages {
  int32_t number[kPageWindow];
};

// Has the pages of a tile looked up, by all threads of the block.
template <class F>
__device__ __forceinline__ void look_up(const Call& call, const Item& t, const Tile& tile,
                                        Pages& pages, int* first) {
  const AttentionArgs& a = call.args;
  if (!is_paged(a) || tile.prefix) return;
  const int from = tile.key0 / 8;
  if (*first >= 0 && from >= *first && from + F::kKeys / 8 <= *first + kPageWindow) return;
  __syncthreads();  // nobody needs those of before
  const int eights = static_cast<int>(a.kv.page_size) / 8, end = (t.end + 7) / 8;
  for (int i = threadIdx.x; i < kPageWindow; i += F::kThreads) {
    const int page =
        from + i < end && 8 * (from + i) + 8 > t.s.prefix_len ? t.s.pages[(from + i) / eights] : -1;
    pages.number[i] = is_page(a, page) ? page : -1;
  }
  *first = from;
  __syncthreads();
}

// Where the key or value of position key0 + r begins; null: nowhere.
__device__ __forceinline__ const uint8_t* row_at(const Call& call, const Item& t, const Tile& tile,
                                                 const Pages& pages, int first, int r,
                                                 bool of_values) {
  const AttentionArgs& a = call.args;
  const int j = tile.key0 + r;
  if (j < tile.lo || j >= tile.hi) return nullptr;
  if (!is_paged(a)) {
    const Tensor& x = of_values ? a.v : a.k;
    const int64_t at = (of_values ? t.s.v : t.s.k) + t.head * head_stride(x) + j * token_stride(x);
    return static_cast<const uint8_t*>(x.data) + 2 * at;
  }
  const int64_t dim = of_values ? a.kv.head_dim_v : a.kv.head_dim;
  if (tile.prefix) {
    const KvBlock& b = a.kv.prefix;
    return kv_prefix(a.kv, t.s.prefix, t.head) + (of_values ? b.v : b.k) + 2 * dim * j;
  }
  const int page = pages.number[j / 8 - first];
  if (page < 0) return nullptr;
  const KvBlock& b = a.kv.page;
  return kv_page(a.kv, page, t.head) + (of_values ? b.v : b.k) +
         2 * dim * (j & (static_cast<int>(a.kv.page_size) - 1));
}

// Eight numbers of 16 bits, `count` of which are there, of a row that may begin anywhere.
__device__ __forceinline__ uint4 gather(const uint8_t* from, int count) {
  uint32_t w[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto* p = reinterpret_cast<const uint16_t*>(from) + 2 * i;
    const uint32_t low = 2 * i < count ? p[0] : 0, high = 2 * i + 1 < count ? p[1] : 0;
    w[i] = low | high << 16;
  }
  return {w[0], w[1], w[2], w[3]};
}

// Asks for rows of `dim` numbers of 16 bits, by all threads; `row(r)` is where row r begins or
// null.
template <class F, class Where>
__device__ __forceinline__ void bring_rows(uint8_t* to, int rows, int dim, bool aligned,
                                           const Where& row) {
  constexpr int kChunks = F::kDim / 8;
  for (int i = threadIdx.x; i < rows * kChunks; i += F::kThreads) {
    const int r = i / kChunks, c = i % kChunks;
    const uint8_t* from = row(r);
    const bool there = from != nullptr && 8 * c < dim;
    uint8_t* p = to + r * F::kStride + 16 * c;
    if (aligned) {
      cp_async_16(smem_address(p), there ? from + 16 * c : from, there ? 16 : 0);
    } else {
      uint4 x = {};
      if (there) x = gather(from + 16 * c, dim - 8 * c);
      *reinterpret_cast<uint4*>(p) = x;
    }
  }
}

// Asks for the keys or values of a tile as numbers, by all threads.
template <class F>
__device__ __forceinline__ void bring_numbers(const Call& call, const Item& t, const Tile& tile,
                                              const Pages& pages, int first, uint8_t* to,
                                              bool of_values) {
  const AttentionArgs& a = call.args;
  const int dim = static_cast<int>(of_values ? head_dim_v_of(a) : head_dim_of(a));
  const bool aligned = of_values ? call.aligned_v : call.aligned_k;
  constexpr int kChunks = F::kDim / 8;
  if (aligned && (!is_paged(a) || tile.prefix || a.kv.page_size >= F::kKeys)) {
    // Rows that follow each other at one distance.
    const uint8_t* base;
    int64_t step = 2 * dim;
    int low = tile.lo - tile.key0, high = tile.hi - tile.key0;
    if (!is_paged(a)) {
      const Tensor& x = of_values ? a.v : a.k;
      step = 2 * token_stride(x);
      base = static_cast<const uint8_t*>(x.data) +
             2 * ((of_values ? t.s.v : t.s.k) + t.head * head_stride(x)) + tile.key0 * step;
    } else if (tile.prefix) {
      const KvBlock& b = a.kv.prefix;
      base = kv_prefix(a.kv, t.s.prefix, t.head) + (of_values ? b.v : b.k) + tile.key0 * step;
    } else {
      const int page = pages.number[tile.lo / 8 - first];  // what is before may be of a prefix
      const KvBlock& b = a.kv.page;
      base = kv_page(a.kv, page < 0 ? 0 : page, t.head) + (of_values ? b.v : b.k) +
             (tile.key0 & (static_cast<int>(a.kv.page_size) - 1)) * step;
      if (page < 0) high = low;
    }
    // Threads along a row, a power of two; what a row has more comes in further steps of as many.
    constexpr int kAcross = kChunks & -kChunks, kPass = F::kThreads / kAcross;
    static_assert(F::kThreads % kAcross == 0 && F::kKeys % kPass == 0);
    const int r0 = threadIdx.x / kAcross, c = threadIdx.x % kAcross;
    const uint8_t* from = base + r0 * step + 16 * c;
    const uint32_t at = smem_address(to + r0 * F::kStride + 16 * c);
    const unsigned count = static_cast<unsigned>(high - low);
    uint32_t bytes[kChunks / kAcross];
#pragma unroll
    for (int m = 0; m < kChunks / kAcross; ++m) bytes[m] = 8 * (c + kAcross * m) < dim ? 16 : 0;
#pragma unroll
    for (int n = 0; n < F::kKeys / kPass; ++n, from += kPass * step) {
      const bool there = static_cast<unsigned>(r0 + n * kPass - low) < count;
#pragma unroll
      for (int m = 0; m < kChunks / kAcross; ++m) {
        cp_async_16(at + n * kPass * F::kStride + 16 * kAcross * m, from + 16 * kAcross * m,
                    there ? bytes[m] : 0);
      }
    }
    return;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < F::kKeys * kChunks; i += F::kThreads) {
    const int r = i / kChunks, c = i % kChunks;
    const uint8_t* from = row_at(call, t, tile, pages, first, r, of_values);
    const bool there = from != nullptr && 8 * c < dim;
    uint8_t* p = to + r * F::kStride + 16 * c;
    if (aligned) {
      cp_async_16(smem_address(p), there ? from + 16 * c : static_cast<const uint8_t*>(a.q.data),
                  there ? 16 : 0);
    } else {
      uint4 x = {};
      if (there) x = gather(from + 16 * c, dim - 8 * c);
      *reinterpret_cast<uint4*>(p) = x;
    }
  }
}

// ---- codes -------------------------------------------------------------------------------------

// Asks for the codes of a tile's keys or values, then scales and zeros of eight tokens each.
template <class F>
__device__ __forceinline__ void bring_codes(const Call& call, const Item& t, const Tile& tile,
                                            const Pages& pages, int first, uint8_t* to,
                                            bool of_values) {
  const KvCache& c = call.args.kv;
  const int dim = static_cast<int>(of_values ? c.head_dim_v : c.head_dim);
  const int row = c.format == KvFormat::int4 ? dim / 2 : dim;
  const int chunks = row / 2;  // of eight rows
  constexpr int kBeside = F::kKeys * F::kDim;
  const KvBlock& b = c.page;
  const uint8_t* none = static_cast<const uint8_t*>(call.args.q.data);
  const int each = chunks + 2;
  for (int i = threadIdx.x; i < F::kKeys / 8 * each; i += F::kThreads) {
    const int eight = i / each, part = i - eight * each, j = tile.key0 + 8 * eight;
    const int page = j < tile.hi && j + 8 > tile.lo ? pages.number[j / 8 - first] : -1;
    const int token = j & (static_cast<int>(c.page_size) - 1);
    int64_t from;
    uint8_t* p;
    if (part < chunks) {
      from = (of_values ? b.v : b.k) + token * row + 16 * part;
      p = to + eight * 8 * row + 16 * part;
    } else {
      const bool zero = part > chunks;
      from = (of_values ? zero ? b.v_zero : b.v_scale : zero ? b.k_zero : b.k_scale) + 2 * token;
      p = to + kBeside + (zero ? 2 * F::kKeys : 0) + 16 * eight;
      if (zero && c.format != KvFormat::int4) continue;
    }
    cp_async_16(smem_address(p), page >= 0 ? kv_page(c, page, t.head) + from : none,
                page >= 0 ? 16 : 0);
  }
}

// What scores and weights of a tile's keys meet. Of values: the scale, one over it, what is left of
// the zero.
template <class F>
struct Numbers {
  float k_scale[F::kKeys], k_zero[F::kKeys];
  float v_scale[F::kKeys], v_inverse[F::kKeys], v_zero[F::kKeys];
  float most[F::kKeys / 16];  // of v_scale, of some keys each
};

__device__ __forceinline__ float whole_zero(float zero) {
  return fabsf(zero) <= 64.0f ? rintf(zero) : 0.0f;
}

// By as many threads as there are keys; k and then v.
template <class F>
__device__ __forceinline__ void take_numbers(const Call& call, const Tile& tile, const uint8_t* raw,
                                             bool of_values, Numbers<F>& n) {
  const int r = threadIdx.x;
  if (r >= F::kKeys) return;
  const int j = tile.key0 + r;
  float scale = 0.0f, zero = 0.0f;
  if (tile.prefix) {
    scale = 1.0f;
  } else if (j >= tile.lo && j < tile.hi) {
    const auto* halves = reinterpret_cast<const uint16_t*>(raw + F::kKeys * F::kDim);
    scale = half_to_f32(halves[r]);
    if (call.args.kv.format == KvFormat::int4) {
      zero = half_to_f32(halves[F::kKeys + r]);
      zero -= whole_zero(zero);
    }
  }
  if (!of_values) {
    n.k_scale[r] = scale;
    n.k_zero[r] = zero;
    return;
  }
  n.v_scale[r] = scale;
  n.v_inverse[r] = scale == 0.0f ? 0.0f : __frcp_rn(scale);
  n.v_zero[r] = zero;
  if constexpr (F::kHalf) {
    float most = fabsf(scale) < INFINITY ? fabsf(scale) : 0.0f;
#pragma unroll
    for (int step = 8; step > 0; step /= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, step, 16));
    }
    if (r % 16 == 0) n.most[r / 16] = most;
  }
}

// Byte i of w as a number, less `middle`; the byte is below 2^23.
__device__ __forceinline__ float byte_of(uint32_t w, int i, float middle) {
  return __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7650u + static_cast<unsigned>(i))) -
         (8388608.0f + middle);
}

// Codes of a tile to operands, by all threads. A tile of a prefix comes as numbers, at once.
template <class F>
__device__ __forceinline__ void take_codes(const Call& call, const Item& t, const Tile& tile,
                                           const Pages& pages, int first, const uint8_t* raw,
                                           uint8_t* to, bool of_values) {
  if (tile.prefix) {
    bring_numbers<F>(call, t, tile, pages, first, to, of_values);
    cp_async_commit();
    cp_async_wait<0>();
    return;
  }
  const KvCache& c = call.args.kv;
  const int dim = static_cast<int>(of_values ? c.head_dim_v : c.head_dim);
  constexpr int kRuns = F::kDim / 8;
  const auto* zeros = reinterpret_cast<const uint16_t*>(raw + F::kKeys * F::kDim) + F::kKeys;
  for (int i = threadIdx.x; i < F::kKeys * kRuns; i += F::kThreads) {
    const int r = i / kRuns, d = i % kRuns * 8;
    uint32_t w[4] = {};
    if (d < dim) {
      float x[8];
      if (c.format == KvFormat::int4) {
        const int half = dim / 2;
        const bool high = d >= half;
        uint2 codes = *reinterpret_cast<const uint2*>(raw + r * half + (high ? d - half : d));
        const int shift = high ? 4 : 0;
        codes.x = codes.x >> shift & 0x0f0f0f0fu;
        codes.y = codes.y >> shift & 0x0f0f0f0fu;
        const float middle = whole_zero(half_to_f32(zeros[r]));
#pragma unroll
        for (int k = 0; k < 8; ++k) x[k] = byte_of(k < 4 ? codes.x : codes.y, k % 4, middle);
      } else {
        const uint2 codes = *reinterpret_cast<const uint2*>(raw + r * dim + d);
        if (c.format == KvFormat::int8) {
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            x[k] = byte_of((k < 4 ? codes.x : codes.y) ^ 0x80808080u, k % 4, 128.0f);
          }
        } else {
          // e4m3 in the bits of f32: its exponent is 120 less.
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            const uint32_t code = (k < 4 ? codes.x : codes.y) >> (8 * (k % 4));
            x[k] = __uint_as_float((code & 0x80u) << 24 | (code & 0x7fu) << 20) * 0x1p120f;
          }
        }
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) w[k] = pair_of<F::kHalf>(x[2 * k], x[2 * k + 1]);
    }
    *reinterpret_cast<uint4*>(to + r * F::kStride + 2 * d) = {w[0], w[1], w[2], w[3]};
  }
}

}  // namespace
}  // namespace lowbit
