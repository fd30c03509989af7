// Canonical weights: made from floats, turned back, checked. All of it on the calling thread and
// the host's pool.
#include "binding/canonical.h"
#include "binding/describe.h"
#include "binding/export.h"

namespace lowbit::binding {

Format read_format(Reader& r, int64_t* n, int64_t* k) {
  int64_t shape[kMaxRank] = {};
  const int rank = r.shape("shape", shape);
  if (!r.failed() && rank != 2) {
    r.fail(
        error(Code::shape, "%s: expected shape to be [N, K] but got %d dimensions", r.op(), rank));
  }
  *n = shape[0];
  *k = shape[1];
  Format f = {};
  f.kind = static_cast<Kind>(r.word("format", kKindCount));
  f.group_n = r.integer("groupN");
  f.group_k = r.integer("groupK");
  f.scale_dtype = static_cast<DType>(r.word("scaleDtype", kDTypeCount + 1));
  f.zero_type = static_cast<ZeroType>(r.word("zeroPoint", kZeroCount));
  f.table_type = static_cast<TableType>(r.word("tablePer", kTableCount));
  const int64_t planes = r.integer("planes");
  if (r.failed()) return f;
  f.planes = static_cast<int32_t>(planes < 0 ? 0 : planes > INT32_MAX ? INT32_MAX : planes);
  if (f.planes <= kMaxPlanes) *k *= f.planes;
  const Status status = check_format(&f, *n, *k);
  if (!is_ok(status)) r.fail(status);
  return f;
}

// Scales and zeros are read where they lie, so their array must be of their width: then it is
// aligned for it. Number 11 is Float16Array, which newer versions of Node have.
static uint8_t* read_array(Reader& r, const char* name, int64_t width, int64_t* bytes) {
  napi_typedarray_type found = napi_uint8_array;
  void* data = r.bytes(name, bytes, &found);
  const int type = static_cast<int>(found);
  const bool fits = width == 4   ? type == napi_float32_array
                    : width == 2 ? type == napi_uint16_array || type == 11
                                 : type == napi_uint8_array;
  if (data != nullptr && !fits) {
    r.fail(error(Code::dtype, "%s: expected %s to be a %s", r.op(), name,
                 width == 4   ? "Float32Array"
                 : width == 2 ? "Uint16Array"
                              : "Uint8Array"));
  }
  return static_cast<uint8_t*>(data);
}

CanonicalBytes read_arrays(Reader& r, const Format& format, int64_t n, int64_t k) {
  CanonicalBytes c = {};
  Buffers& b = c.buffers;
  Sizes& sizes = c.sizes;
  b.codes = static_cast<uint8_t*>(r.bytes("codes", &sizes.codes));
  const DType scale_dtype = format.scale_dtype;
  const int64_t scale_width = scale_dtype == DType::none ? 1 : dtype_bytes(scale_dtype);
  b.scales = read_array(r, "scales", scale_width, &sizes.scales);
  b.zeros = read_array(r, "zeros", format.zero_type == ZeroType::f32 ? 4 : 1, &sizes.zeros);
  b.tables = reinterpret_cast<float*>(read_array(r, "table", 4, &sizes.tables));
  b.tensor_scale = reinterpret_cast<float*>(read_array(r, "tensorScale", 4, &sizes.tensor_scale));
  c.weight = {format, n, k, b.codes, b.scales, b.zeros, b.tables, b.tensor_scale};
  if (r.failed()) return c;
  const Status status = check_sizes(format, n, k, sizes);
  if (!is_ok(status)) r.fail(status);
  return c;
}

CanonicalBytes read_buffers(Reader& r) {
  int64_t n = 0, k = 0;
  const Format format = read_format(r, &n, &k);
  return read_arrays(r, format, n, k);
}

Canonical read_canonical(Reader& r) {
  const CanonicalBytes c = read_buffers(r);
  if (r.failed()) return c.weight;
  const Status status = check_canonical(c.weight, c.sizes);
  if (!is_ok(status)) r.fail(status);
  return c.weight;
}

// formatSizes(...format): how large the arrays of a canonical weight are.
napi_value format_sizes(napi_env env, napi_callback_info info) {
  Reader r(env, info, "quantize");
  int64_t n, k;
  const Format f = read_format(r, &n, &k);
  if (r.failed()) return nullptr;
  const bool scaled = kind_row(f.kind).scaled;
  const Sizes sizes = canonical_sizes(f, n, k);
  napi_value out;
  napi_create_object(env, &out);
  set_number(env, out, "groupN", static_cast<double>(f.group_n));
  set_number(env, out, "groupK", static_cast<double>(f.group_k));
  set_number(env, out, "codes", static_cast<double>(sizes.codes));
  set_number(env, out, "scaleRows", scaled ? static_cast<double>(scale_rows(f, n)) : 0);
  set_number(env, out, "scaleCols", scaled ? static_cast<double>(scale_cols(f, k)) : 0);
  set_number(env, out, "tables", static_cast<double>(sizes.tables / 64));
  return out;
}

// quantize(values, dtype, clip, ...canonical)
napi_value quantize_weight(napi_env env, napi_callback_info info) {
  Reader r(env, info, "quantize");
  int64_t bytes = 0;
  const void* values = r.bytes("weights", &bytes);
  const DType dtype = static_cast<DType>(r.word("dtype", kDTypeCount));
  const bool clip = r.boolean("clip");
  const CanonicalBytes c = read_buffers(r);
  if (r.failed()) return nullptr;
  const int64_t k = plane_columns(c.weight.format, c.weight.k);
  const int64_t count = c.weight.n * k, got = bytes / dtype_bytes(dtype);
  if (got != count || bytes % dtype_bytes(dtype) != 0) {
    return fail(env,
                error(Code::shape, "quantize: expected %lld weights for [%lld, %lld] but got %lld",
                      static_cast<long long>(count), static_cast<long long>(c.weight.n),
                      static_cast<long long>(k), static_cast<long long>(got)));
  }
  const Status status = quantize(values, dtype, c.weight.n, c.weight.k, {c.weight.format, clip},
                                 c.buffers, host_pool(env));
  return is_ok(status) ? nullptr : fail(env, status);
}

// dequantize(out, dtype, ...canonical)
napi_value dequantize_weight(napi_env env, napi_callback_info info) {
  Reader r(env, info, "dequantize");
  int64_t bytes = 0;
  void* out = r.bytes("out", &bytes);
  const DType dtype = static_cast<DType>(r.word("dtype", kDTypeCount));
  const Canonical c = read_canonical(r);
  if (r.failed()) return nullptr;
  if (bytes != c.n * plane_columns(c.format, c.k) * dtype_bytes(dtype)) {
    return fail(env, error(Code::internal, "dequantize: the array has %lld bytes",
                           static_cast<long long>(bytes)));
  }
  const Status status = dequantize(c, out, dtype, host_pool(env));
  return is_ok(status) ? nullptr : fail(env, status);
}

// checkWeight(...canonical)
napi_value check_weight(napi_env env, napi_callback_info info) {
  Reader r(env, info, "canonical");
  read_canonical(r);
  return nullptr;
}

}  // namespace lowbit::binding
