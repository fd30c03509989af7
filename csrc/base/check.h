// The checks that ops share, with one sentence for each: "op: expected a of ... but got ...".
#pragma once

#include "csrc/base/status.h"
#include "csrc/base/tensor.h"

namespace lowbit {

struct Named {
  const char* name;
  const Tensor* tensor;
};

static inline long long ll(int64_t value) { return static_cast<long long>(value); }

Status check_present(const char* op, const Named& n);
// One of `set`.
Status check_dtype(const char* op, const Named& n, DTypeSet set);
// `why` says where the shape comes from: "as x".
Status check_shape(const char* op, const Named& n, const Tensor& expected, const char* why);
// [length]
Status check_vector(const char* op, const Named& n, int64_t length, const char* why);
// The last dimension lies without gaps.
Status check_rows(const char* op, const Named& n);
Status check_same_device(const char* op, const Named& n, const Named& as);
// No two elements of an output share memory.
Status check_injective(const char* op, const Named& n);
// `out` shares no memory with `other`.
Status check_apart(const char* op, const Named& out, const Named& other);
// The same, but `out` may be the very view: the same memory in the same order, elements as wide.
Status check_apart_or_same(const char* op, const Named& out, const Named& other);

// Whether two views may touch the same byte. Finds views apart that interleave with a common
// stride, such as two slices of the columns of one matrix.
bool may_share(const Tensor& a, const Tensor& b);

// "3" or "1, 3": the index of the element that stands at `index` in row-major order.
ShapeText index_text(const Tensor& t, int64_t index);

}  // namespace lowbit
