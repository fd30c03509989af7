// attention_bf16_avx512bf16: o = score(softmax_scale * q k^T + bias) v; bf16 in, products of bf16
// pairs with f32 sums.
//
// Shapes    all of attention.h up to head_dim 1024, q, k and v in bf16, without bias; caches of
//           bf16, fp8_e4m3, int8 and int4.
// Layout    any strides that the contract allows. In scratch, a dword being a pair of bf16:
//             q  [step of up to 12 rows][head_dim / 2][rows]        pairs of dimensions
//             k  [keys / 32][head_dim / 2][32]                      pairs of dimensions
//             v  [head_dim_v / 32][keys / 2][32]                    pairs of keys
//             p  [12][keys / 2]                                     pairs of keys
// Bound     prefill: vdpbf16ps, 2 * (head_dim + head_dim_v) operations a visible pair. Decode: one
//           read of the visible K and V.
// Method    a tile's K and V are packed once for all rows of a block; 12 rows by 32 keys (or
//           dimensions of v) in registers, 24 sums, two loads and 12 broadcasts for 24 products.
//           Scores have keys in lanes; their maximum is added up across lanes only where one of
//           them passes the old one. P is rounded to bf16 and its sum l is that of the rounded
//           numbers, so that weights add up to one; the sum for lse is that of P in f32. Decode
//           takes the kv heads of a tile of keys together, in the order of memory, and asks for
//           the next tile meanwhile (step_avx512bf16.h). Other tiles of a cache are decoded first.
//           vdpbf16ps takes subnormals for zero, and P = 0 times inf is no number: rows that see
//           a key or a value out of the ordinary are served by flash.h in f32. No other row's bits
//           depend on it.
// Source    Dao, FlashAttention-2, 2023; Hong et al., FlashDecoding++, 2023 (split keys).
// Measured  see NOTES.md.
// GCC 12 warns of its own header, whose _mm512_undefined functions read what nobody wrote.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "csrc/attention/attention.h"
#include "csrc/attention/codes_avx512bf16.h"
#include "csrc/attention/pairs_avx512bf16.h"
#include "csrc/attention/step_avx512bf16.h"

namespace lowbit {
namespace {

// 24 sums, two vectors of keys or values and a broadcast: 27 of 32 registers.
constexpr int kMR = 12;
static_assert(V::kBlockRows % kMR == 0);
// Keys of a tile. Prefill: o is loaded and stored once a tile, so the longer the better; K and V
// are 64 KiB at head_dim 128. Decode: a tile of eight kv heads and the next one, which is on its
// way, have room in an L2 of 1 MiB.
constexpr int kStepTile = 64;
static_assert(kTile <= 2 * V::kBlockKeys, "k and v have room for so many pairs");

// Sixteen rows of sixteen dwords, transposed.
inline void transpose16(__m512i (&x)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // x[4 * i + j]: in each quarter its column j of rows 4i to 4i + 3
    x[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    x[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    x[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    x[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88);
    t[4 + j] = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xdd);
    t[8 + j] = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xdd);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    x[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
    x[4 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0x88);
    x[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
    x[12 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0xdd);
  }
}

// Pairs of dimensions of sixteen rows: out[pair * stride + i]. Columns are written sixteen lanes
// wide: what hangs over a smaller stride is the beginning of the next one, written later.
template <bool kWhole>
inline void pack_32(const Bf16* const* row, int64_t d, __mmask32 words, int64_t ahead,
                    uint32_t* out, int64_t stride, Range& range) {
  __m512i x[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    x[i] = kWhole ? _mm512_loadu_si512(row[i] + d) : _mm512_maskz_loadu_epi16(words, row[i] + d);
    if (ahead != 0) __builtin_prefetch(row[i] + d + ahead, 0, 2);  // into L2
    take(range, x[i]);
  }
  transpose16(x);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * stride, x[i]);
}
inline void pack_pairs(const Bf16* const* row, int64_t head_dim, int64_t ahead, uint32_t* out,
                       int64_t stride, Range& range) {
  int64_t d = 0;
  for (; d + 32 <= head_dim; d += 32) {
    pack_32<true>(row, d, 0, ahead, out + d / 2 * stride, stride, range);
  }
  if (d < head_dim) {
    const __mmask32 words = first_words(head_dim - d);
    pack_32<false>(row, d, words, ahead, out + d / 2 * stride, stride, range);
  }
}

// Rows of step i: kMR, and what is left in the last one, padded to four.
inline int step_rows(int rows, int i) {
  const int left = rows - i * kMR;
  return left >= kMR ? kMR : (left + 3) / 4 * 4;
}

// Rows that fill up a step repeat the last real one.
void pack_q(const Call& c, const Item& item, uint32_t* out, Range& range) {
  for (int first = 0; first < item.rows; first += kMR) {
    const int rows = step_rows(item.rows, first / kMR);
    const Bf16* row[16];
    for (int r = 0; r < 16; ++r) {
      row[r] = query_row<Bf16>(c, item, first + r < item.rows ? first + r : item.rows - 1);
    }
    pack_pairs(row, c.plan.head_dim, 0, out, rows, range);
    out += rows * c.plan.head_dim_pad / 2;
  }
}

// Lanes past the last key repeat it; nobody sees them. Meanwhile what stands `ahead` elements
// further on is on its way to L2: asked for all at once it would not overlap with anything.
void pack_k(const Bf16* k, int64_t stride, int count, int64_t ahead, const Plan& p, uint32_t* out,
            Range& range) {
  const int padded = (count + 31) / 32 * 32;
  for (int j = 0; j < padded; j += 16) {
    const Bf16* row[16];
    for (int i = 0; i < 16; ++i) row[i] = k + (j + i < count ? j + i : count - 1) * stride;
    pack_pairs(row, p.head_dim, ahead, out + j / 32 * 16 * p.head_dim_pad + j % 32, 32, range);
  }
}

// The partner of an odd last value is zero, and so is what fills up head_dim_v.
void pack_v(const Bf16* v, int64_t stride, int count, int64_t ahead, const Plan& p, uint32_t* out,
            Range& range) {
  alignas(64) static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                    37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                    11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const auto pair = [&](__m512i a, __m512i b, uint32_t* to) {
    take(range, a);
    take(range, b);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
    _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(a, high, b));
  };
  for (int j = 0; j < count; j += 2) {
    const Bf16 *row = v + j * stride, *next = row + stride;
    uint32_t* to = out + j / 2 * 32;
    int64_t d = 0;
    for (; d + 32 <= p.head_dim_v && j + 1 < count; d += 32, to += kTile / 2 * 32) {
      __builtin_prefetch(row + d + ahead, 0, 2);
      __builtin_prefetch(next + d + ahead, 0, 2);
      pair(_mm512_loadu_si512(row + d), _mm512_loadu_si512(next + d), to);
    }
    for (; d < p.head_dim_v; d += 32, to += kTile / 2 * 32) {
      const __mmask32 words = first_words(p.head_dim_v - d), more = j + 1 < count ? words : 0;
      pair(_mm512_maskz_loadu_epi16(words, row + d), _mm512_maskz_loadu_epi16(more, next + d), to);
    }
  }
}

// s[r][j] = q[r] . k[j] for kRows rows and a panel of 32 keys.
template <int kRows>
inline void score_panel(const uint32_t* q, const uint32_t* k, int64_t pairs, float* s) {
  __m512 acc[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
  for (int64_t d = 0; d < pairs; ++d) {
    const __m512i k0 = _mm512_loadu_si512(k), k1 = _mm512_loadu_si512(k + 16);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(q[r]));
      acc[r][0] = dot(acc[r][0], x, k0);
      acc[r][1] = dot(acc[r][1], x, k1);
    }
    q += kRows;
    k += 32;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_ps(s + r * kTile, acc[r][0]);
    _mm512_storeu_ps(s + r * kTile + 16, acc[r][1]);
  }
}

// o[r] = o[r] * shrink[r] - subtract[r] + sum of p[r][j] * v[j] over the pairs [begin, end), for
// kRows rows and a panel of 32 dimensions; without kCodes nothing is subtracted.
template <int kRows, bool kCodes>
inline void value_panel(const uint32_t* p, const float* shrink, const float* subtract,
                        const uint32_t* v, int begin, int end, float* o, int64_t o_stride) {
  __m512 acc[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const __m512 by = _mm512_set1_ps(shrink[r]);
    acc[r][0] = _mm512_mul_ps(_mm512_loadu_ps(o + r * o_stride), by);
    acc[r][1] = _mm512_mul_ps(_mm512_loadu_ps(o + r * o_stride + 16), by);
    if constexpr (kCodes) {
      acc[r][0] = _mm512_sub_ps(acc[r][0], _mm512_set1_ps(subtract[r]));
      acc[r][1] = _mm512_sub_ps(acc[r][1], _mm512_set1_ps(subtract[r]));
    }
  }
  for (int j = begin; j < end; ++j) {
    const __m512i v0 = _mm512_loadu_si512(v + j * 32), v1 = _mm512_loadu_si512(v + j * 32 + 16);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(p[r * (kTile / 2) + j]));
      acc[r][0] = dot(acc[r][0], x, v0);
      acc[r][1] = dot(acc[r][1], x, v1);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_ps(o + r * o_stride, acc[r][0]);
    _mm512_storeu_ps(o + r * o_stride + 16, acc[r][1]);
  }
}

// What a tile of a cache's codes needs besides.
struct Codes {
  const TileScales* scales;
  const float* q_sum;  // of the item's rows
};

// A step of kRows rows against the packed tile.
template <int kRows, bool kCodes>
void run_rows(const Call& c, const Item& item, const Scratch& t, const int* low, const int* high,
              int r0, const uint32_t* q, int64_t first, const Codes& codes) {
  const Plan& p = c.plan;
  const Edges e = edges_of(low + r0, high + r0, kRows);
  if (e.begin == e.end) return;
  const auto* k = reinterpret_cast<const uint32_t*>(t.k);
  const auto* v = reinterpret_cast<const uint32_t*>(t.v);
  float* s = t.s;
  auto* weights = reinterpret_cast<uint32_t*>(t.s + kMR * kTile);
  const int begin = e.begin / 32 * 32, end = (e.end + 31) / 32 * 32;
  for (int j = begin; j < end; j += 32) {
    score_panel<kRows>(q, k + j / 32 * 16 * p.head_dim_pad, (p.head_dim + 1) / 2, s + j);
  }
  float subtract[kRows], unit[kRows];
  if constexpr (kCodes) {
    score_code_rows<false>(c, item, t, low, high, r0, kRows, first, begin, end, *codes.scales,
                           {codes.q_sum, nullptr, nullptr}, s, weights, {subtract, unit});
  } else {
    score_step_rows(c, item, t, low, high, r0, kRows, first, begin, end, s, weights);
  }
  for (int64_t d = 0; d < p.head_dim_v_pad; d += 32) {
    value_panel<kRows, kCodes>(weights, t.shrink + r0, subtract, v + d / 32 * (kTile / 2 * 32),
                               e.begin / 2, (e.end + 1) / 2, t.o + r0 * p.head_dim_v_pad + d,
                               p.head_dim_v_pad);
  }
}

// All steps of an item.
template <bool kCodes>
void run_steps(const Call& c, const Item& item, const Scratch& t, const int* low, const int* high,
               int64_t first, const Codes& codes) {
  const auto* q = reinterpret_cast<const uint32_t*>(t.q);
  for (int r = 0; r < item.rows; r += kMR) {
    const int n = step_rows(item.rows, r / kMR);
    switch (n) {
      case 4: run_rows<4, kCodes>(c, item, t, low, high, r, q, first, codes); break;
      case 8: run_rows<8, kCodes>(c, item, t, low, high, r, q, first, codes); break;
      default: run_rows<kMR, kCodes>(c, item, t, low, high, r, q, first, codes); break;
    }
    q += n * c.plan.head_dim_pad / 2;
  }
}

// Marks the rows that see a key or a value out of the ordinary, and takes those out of the packed
// tile, so that the rows that don't see them add zeros.
void mark_keys(const Plan& p, const Item& item, const Scratch& t, const Bf16* k, int64_t k_stride,
               const Bf16* v, int64_t v_stride, int count, const int* low, const int* high) {
  auto* packed_k = reinterpret_cast<uint32_t*>(t.k);
  auto* packed_v = reinterpret_cast<uint32_t*>(t.v);
  for (int j = 0; j < count; ++j) {
    Range range = no_range();
    take_row(range, k + j * k_stride, p.head_dim);
    take_row(range, v + j * v_stride, p.head_dim_v);
    if (is_ordinary(range)) continue;
    for (int r = 0; r < item.rows; ++r) {
      if (low[r] <= j && j < high[r]) t.exact[r] = 1;
    }
    uint32_t* key = packed_k + j / 32 * 16 * p.head_dim_pad + j % 32;
    for (int64_t d = 0; d < p.head_dim; d += 2) key[d / 2 * 32] = 0;
    const uint32_t partner = j % 2 == 0 ? 0xffff0000u : 0x0000ffffu;
    for (int64_t d = 0; d < p.head_dim_v_pad; ++d) {
      packed_v[(d / 32 * (kTile / 2) + j / 2) * 32 + d % 32] &= partner;
    }
  }
}

// The tile of an item from key `first` on: in place, or decoded.
Source<Bf16> tile_of(const Call& c, const Item& item, int64_t first, int count, const Scratch& t,
                     TileScales* scales) {
  if (c.plan.paged) return decode_pairs(c, item, first, count, t, scales);
  return TensorKeys<Bf16>(c, item, t).tile(first, count);
}

// Items that differ in the kv head alone; `padded` is the room of each one's rows.
void run_together(const Call& c, const Item* items, int count, int padded, const Scratch& t) {
  const Plan& p = c.plan;
  const int rows = items[0].rows, tile = rows <= kMR ? kStepTile : kTile;
  const KeyRange keys = items[0].keys;
  TileScales scales;
  float q_sum[V::kBlockRows] = {};
  for (int i = 0; i < count; ++i) {
    const Scratch own = from_row(t, p, i * padded);
    Range range = no_range();
    const int32_t flag = has_ordinary_options(c, items[i]) ? 0 : 1;
    for (int r = 0; r < padded; ++r) own.exact[r] = flag;
    pack_q(c, items[i], reinterpret_cast<uint32_t*>(own.q), range);
    if (!is_ordinary(range)) mark_queries(c, items[i], own.exact);
    for (int r = 0; r < rows && p.paged; ++r) {
      q_sum[i * padded + r] = sum_of(query_row<Bf16>(c, items[i], r), p.head_dim);
    }
    start_states<V>(c, items[i], own);
    for (int64_t d = rows * p.head_dim_v_pad; d < padded * p.head_dim_v_pad; ++d) own.o[d] = 0;
  }
  for (int64_t first = keys.begin; first < keys.end; first += tile) {
    const int64_t left = keys.end - first;
    const int here = left < tile ? static_cast<int>(left) : tile;
    set_limits(p, items[0], padded, first, here, t.low, t.high);
    for (int i = 0; i < count; ++i) {
      const Item& item = items[i];
      const Scratch own = from_row(t, p, i * padded);
      const Source<Bf16> from = tile_of(c, item, first, here, t, &scales);
      const int64_t ahead = p.paged ? 0 : tile;
      Range range = no_range();
      pack_k(from.k, from.k_stride, here, ahead * from.k_stride, p,
             reinterpret_cast<uint32_t*>(t.k), range);
      pack_v(from.v, from.v_stride, here, ahead * from.v_stride, p,
             reinterpret_cast<uint32_t*>(t.v), range);
      if (!is_ordinary(range)) {
        mark_keys(p, item, own, from.k, from.k_stride, from.v, from.v_stride, here, t.low, t.high);
      }
      const Codes codes = {&scales, q_sum + i * padded};
      if (p.paged && c.args->kv.format != KvFormat::bf16) {
        run_steps<true>(c, item, own, t.low, t.high, first, codes);
      } else {
        run_steps<false>(c, item, own, t.low, t.high, first, codes);
      }
    }
  }
  for (int i = 0; i < count; ++i) finish<V>(c, items[i], from_row(t, p, i * padded));
}

// An item in f32, of which the rows are written that have this flag in `exact`.
void run_exact(const Call& c, const Item& item, Scratch t) {
  t.lse_l = t.l;
  t.wanted = 1;
  run_item<V, Bf16>(c, item, t);
}

void run_dots(const Call& c, const Item* items, int count, const Scratch& t) {
  const bool in_place = items[0].rows <= V::kStepRows && can_step(c, items[0]);
  const int padded = (items[0].rows + 3) / 4 * 4, most = V::kBlockRows / padded;
  for (int i = 0; i < count; i += most) {
    const int n = count - i < most ? count - i : most;
    Scratch own = t;
    own.wanted = 0;
    if (in_place) {
      step_pairs(c, items + i, n, padded, own);
    } else {
      run_together(c, items + i, n, padded, own);
    }
    // The flags of item j stand where its rows did; its own rows begin at 0 in f32.
    for (int j = 0; j < n; ++j) {
      own.exact = t.exact + j * padded;
      bool any = false;
      for (int r = 0; r < items[i + j].rows; ++r) any = any || own.exact[r] != 0;
      if (any) run_exact(c, items[i + j], own);
    }
  }
}

}  // namespace

extern const AttentionKernel attention_bf16_avx512bf16;
const AttentionKernel attention_bf16_avx512bf16 = {
    "attention_bf16_avx512bf16", kArchAvx512Bf16,        {bit(DType::bf16), 1024, 1, kPairFormats},
    flash_workspace<V>,          flash_run<V, run_dots>,
};

}  // namespace lowbit
