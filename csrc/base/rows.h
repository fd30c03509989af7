// Rows: the rows of a view, which are all of its dimensions but the last, numbered in row-major
// order; and the common shape of several views that are walked together.
#pragma once

#include "csrc/base/tensor.h"

namespace lowbit {

struct Rows {
  int64_t count;   // of rows
  int64_t length;  // of each, in elements
  int32_t rank;    // of the dimensions below, neighbours merged where memory allows
  int64_t shape[kMaxRank], strides[kMaxRank];
};

// Of the first `rank` dimensions of t.
static constexpr Rows rows_over(const Tensor& t, int rank) {
  Rows rows = {};
  rows.count = rows.length = 1;
  for (int i = rank; i < t.rank; ++i) rows.length *= t.shape[i];
  for (int i = 0; i < rank; ++i) {
    rows.count *= t.shape[i];
    if (t.shape[i] == 1) continue;
    const int last = rows.rank - 1;
    if (last >= 0 && rows.strides[last] == t.shape[i] * t.strides[i]) {
      rows.shape[last] *= t.shape[i];
      rows.strides[last] = t.strides[i];
    } else {
      rows.shape[rows.rank] = t.shape[i];
      rows.strides[rows.rank++] = t.strides[i];
    }
  }
  return rows;
}

// The rows of a view of at least one dimension.
static constexpr Rows rows_of(const Tensor& t) { return rows_over(t, t.rank - 1); }
// Every element as a row of its own.
static constexpr Rows elements_of(const Tensor& t) { return rows_over(t, t.rank); }

// Elements from the view's first to the row's first.
static constexpr int64_t row_offset(const Rows& rows, int64_t row) {
  int64_t offset = 0;
  for (int i = rows.rank - 1; i > 0; --i) {
    offset += row % rows.shape[i] * rows.strides[i];
    row /= rows.shape[i];
  }
  return rows.rank > 0 ? offset + row * rows.strides[0] : 0;
}

// Up to three views of one shape, walked together: neighbouring dimensions are merged where that
// suits all of them, so that contiguous views become a single row.
inline constexpr int kWalkViews = 3;
struct Walk {
  int64_t count;   // of rows
  int64_t length;  // of each, in elements
  int32_t rank;    // of the dimensions of `count`
  int64_t shape[kMaxRank];
  int64_t strides[kWalkViews][kMaxRank];
  int64_t step[kWalkViews];  // from one element of a row to the next
};

static constexpr Walk walk_of(const Tensor* const* views, int count) {
  Walk w = {};
  // All dimensions first; the innermost one leaves at the end.
  for (int i = 0; i < views[0]->rank; ++i) {
    const int64_t size = views[0]->shape[i];
    if (size == 1) continue;
    const int last = w.rank - 1;
    bool merge = last >= 0;
    for (int v = 0; v < count && merge; ++v) {
      merge = w.strides[v][last] == size * views[v]->strides[i];
    }
    const int to = merge ? last : w.rank++;
    w.shape[to] = merge ? w.shape[to] * size : size;
    for (int v = 0; v < count; ++v) w.strides[v][to] = views[v]->strides[i];
  }
  w.length = 1;
  if (w.rank > 0) {
    w.length = w.shape[--w.rank];
    for (int v = 0; v < count; ++v) w.step[v] = w.strides[v][w.rank];
  }
  w.count = 1;
  for (int i = 0; i < w.rank; ++i) w.count *= w.shape[i];
  return w;
}

// The same with rows whose elements are neighbours in each of the `count` views; where the
// innermost dimension is not, every element becomes a row.
static constexpr Walk walk_rows(const Tensor* const* views, int count) {
  Walk w = walk_of(views, count);
  bool neighbours = true;
  for (int v = 0; v < count; ++v) neighbours = neighbours && w.step[v] == 1;
  if (neighbours || w.length == 1) return w;
  for (int v = 0; v < count; ++v) w.strides[v][w.rank] = w.step[v];
  w.shape[w.rank++] = w.length;
  w.count *= w.length;
  w.length = 1;
  return w;
}

// Elements from view v's first to its first of the row.
static constexpr int64_t walk_offset(const Walk& w, int v, int64_t row) {
  int64_t offset = 0;
  for (int i = w.rank - 1; i > 0; --i) {
    offset += row % w.shape[i] * w.strides[v][i];
    row /= w.shape[i];
  }
  return w.rank > 0 ? offset + row * w.strides[v][0] : 0;
}

static constexpr const void* element(const void* base, DType dtype, int64_t index) {
  return static_cast<const uint8_t*>(base) + index * dtype_bytes(dtype);
}
static constexpr void* element(void* base, DType dtype, int64_t index) {
  return static_cast<uint8_t*>(base) + index * dtype_bytes(dtype);
}

// Rows of about this many elements make one chunk of parallel work: a microsecond or more, so that
// what one row of a decode step needs stays on the thread that asks, and a chunk costs the pool
// little.
static constexpr int64_t row_grain(int64_t length, int64_t elements) {
  return length >= elements ? 1 : elements / (length > 0 ? length : 1);
}

}  // namespace lowbit
