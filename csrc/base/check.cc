#include "csrc/base/check.h"

#include <cstdio>

namespace lowbit {

Status check_present(const char* op, const Named& n) {
  if (present(*n.tensor)) return ok();
  return error(Code::type, "%s: %s must be given", op, n.name);
}

Status check_dtype(const char* op, const Named& n, DTypeSet set) {
  if (!present(*n.tensor) || has(set, n.tensor->dtype)) return ok();
  char list[64] = "";
  int at = 0, left = __builtin_popcount(set);
  for (int i = 0; i < kDTypeCount; ++i) {
    if (!has(set, static_cast<DType>(i))) continue;
    --left;
    const char* after = left > 1 ? ", " : left == 1 ? " or " : "";
    at += std::snprintf(list + at, sizeof list - static_cast<size_t>(at), "%s%s", kDTypes[i].name,
                        after);
  }
  return error(Code::dtype, "%s: expected %s in %s but got %s", op, n.name, list,
               dtype_name(n.tensor->dtype));
}

Status check_shape(const char* op, const Named& n, const Tensor& expected, const char* why) {
  if (!present(*n.tensor) || same_shape(*n.tensor, expected)) return ok();
  return error(Code::shape, "%s: expected %s of shape %s (%s) but got %s", op, n.name,
               shape_text(expected).text, why, shape_text(*n.tensor).text);
}

Status check_vector(const char* op, const Named& n, int64_t length, const char* why) {
  const Tensor& t = *n.tensor;
  if (!present(t)) return ok();
  if (t.rank != 1 || t.shape[0] != length) {
    return error(Code::shape, "%s: expected %s of shape [%lld] (%s) but got %s", op, n.name,
                 ll(length), why, shape_text(t).text);
  }
  return check_rows(op, n);
}

Status check_rows(const char* op, const Named& n) {
  if (!present(*n.tensor) || rows_contiguous(*n.tensor)) return ok();
  return error(Code::strides,
               "%s: expected %s with a contiguous last dimension but its stride is %lld; copy() "
               "makes one",
               op, n.name, ll(n.tensor->strides[n.tensor->rank - 1]));
}

Status check_same_device(const char* op, const Named& n, const Named& as) {
  if (!present(*n.tensor) || same_device(n.tensor->device, as.tensor->device)) return ok();
  return error(Code::device, "%s: %s is on another device than %s", op, n.name, as.name);
}

// Walks the dimensions from the smallest stride up: each must step over all that the smaller ones
// reach.
static bool is_injective(const Tensor& t) {
  if (numel(t) == 0) return true;
  bool used[kMaxRank] = {};
  int64_t reach = 0;
  for (int step = 0; step < t.rank; ++step) {
    int next = -1;
    for (int i = 0; i < t.rank; ++i) {
      if (!used[i] && (next < 0 || t.strides[i] < t.strides[next])) next = i;
    }
    used[next] = true;
    if (t.shape[next] == 1) continue;
    if (t.strides[next] <= reach) return false;
    reach += (t.shape[next] - 1) * t.strides[next];
  }
  return true;
}

Status check_injective(const char* op, const Named& n) {
  if (!present(*n.tensor) || is_injective(*n.tensor)) return ok();
  return error(Code::strides, "%s: expected %s without elements that share memory", op, n.name);
}

// The dimension of the largest stride; -1: there is none of more than one element.
static int outermost(const Tensor& t) {
  int outer = -1;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] > 1 && (outer < 0 || t.strides[i] > t.strides[outer])) outer = i;
  }
  return outer;
}

bool may_share(const Tensor& a, const Tensor& b) {
  if (!overlaps(a, b)) return false;
  const int ia = outermost(a), ib = outermost(b);
  if (ia < 0 || ib < 0) return true;
  const int64_t step = a.strides[ia] * dtype_bytes(a.dtype);
  if (step != b.strides[ib] * dtype_bytes(b.dtype) || step == 0) return true;
  // Within one step each view fills one run of bytes, if it does not reach into the next step.
  Tensor one_a = a, one_b = b;
  one_a.shape[ia] = 1;
  one_b.shape[ib] = 1;
  const int64_t na = span_bytes(one_a), nb = span_bytes(one_b);
  int64_t from_a_to_b =
      (static_cast<const uint8_t*>(b.data) - static_cast<const uint8_t*>(a.data)) % step;
  if (from_a_to_b < 0) from_a_to_b += step;
  return from_a_to_b < na || from_a_to_b + nb > step;
}

static Status shared(const char* op, const Named& out, const Named& other) {
  return error(Code::argument, "%s: expected %s in memory of its own but it overlaps %s", op,
               out.name, other.name);
}

Status check_apart(const char* op, const Named& out, const Named& other) {
  if (!present(*out.tensor) || !present(*other.tensor)) return ok();
  return may_share(*out.tensor, *other.tensor) ? shared(op, out, other) : ok();
}

static bool same_view(const Tensor& a, const Tensor& b) {
  if (a.data != b.data || !same_shape(a, b) || dtype_bytes(a.dtype) != dtype_bytes(b.dtype)) {
    return false;
  }
  for (int i = 0; i < a.rank; ++i) {
    if (a.shape[i] > 1 && a.strides[i] != b.strides[i]) return false;
  }
  return true;
}

Status check_apart_or_same(const char* op, const Named& out, const Named& other) {
  if (!present(*out.tensor) || !present(*other.tensor)) return ok();
  if (same_view(*out.tensor, *other.tensor)) return ok();
  if (!may_share(*out.tensor, *other.tensor)) return ok();
  return error(Code::argument,
               "%s: expected %s to be %s itself or in memory of its own but it overlaps %s", op,
               out.name, other.name, other.name);
}

ShapeText index_text(const Tensor& t, int64_t index) {
  int64_t at[kMaxRank] = {};
  for (int i = t.rank - 1; i >= 0; --i) {
    at[i] = index % t.shape[i];
    index /= t.shape[i];
  }
  ShapeText s = {};
  int length = 0;
  for (int i = 0; i < t.rank; ++i) {
    length += std::snprintf(s.text + length, sizeof s.text - static_cast<size_t>(length),
                            i ? ", %lld" : "%lld", ll(at[i]));
  }
  return s;
}

}  // namespace lowbit
