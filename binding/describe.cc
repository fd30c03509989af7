// Hands the native tables to JavaScript: the very ones that native code uses, so that lib can
// compare its word lists and tests and benches can walk the rows.
#include "binding/describe.h"

#include "binding/args.h"
#include "binding/export.h"
#include "csrc/attention/attention.h"
#include "csrc/base/cuda_queue.h"
#include "csrc/base/probe.h"
#include "csrc/copy/copy.h"
#include "csrc/elementwise/elementwise.h"
#include "csrc/embedding/embedding.h"
#include "csrc/format/layout.h"
#include "csrc/kv/kv.h"
#include "csrc/linear/linear.h"
#include "csrc/norm/norm.h"
#include "csrc/quantize/quantize.h"
#include "csrc/rope/rope.h"
#include "csrc/softmax/softmax.h"

namespace lowbit::binding {

void set_number(napi_env env, napi_value object, const char* name, double value) {
  napi_value v;
  napi_create_double(env, value, &v);
  napi_set_named_property(env, object, name, v);
}
void set_boolean(napi_env env, napi_value object, const char* name, bool value) {
  napi_value v;
  napi_get_boolean(env, value, &v);
  napi_set_named_property(env, object, name, v);
}
void set_text(napi_env env, napi_value object, const char* name, const char* value) {
  napi_value v;
  napi_create_string_utf8(env, value, NAPI_AUTO_LENGTH, &v);
  napi_set_named_property(env, object, name, v);
}
void push(napi_env env, napi_value array, napi_value value) {
  uint32_t length = 0;
  napi_get_array_length(env, array, &length);
  napi_set_element(env, array, length, value);
}
void push_text(napi_env env, napi_value array, const char* value) {
  napi_value v;
  napi_create_string_utf8(env, value, NAPI_AUTO_LENGTH, &v);
  push(env, array, v);
}

template <class Name>
static void set_words(napi_env env, napi_value object, const char* name, int count,
                      const Name& word) {
  napi_value array;
  napi_create_array(env, &array);
  for (int i = 0; i < count; ++i) push_text(env, array, word(i));
  napi_set_named_property(env, object, name, array);
}

static void set_archs(napi_env env, napi_value object, const char* name, ArchSet set) {
  napi_value array;
  napi_create_array(env, &array);
  for (const ArchRow& row : kArchs) {
    if (set & row.bit) push_text(env, array, row.name);
  }
  napi_set_named_property(env, object, name, array);
}

template <class Row, class Spec>
static void add_rows(napi_env env, napi_value array, const char* op, const Row* const* rows,
                     int count, const Spec& spec) {
  for (int i = 0; i < count; ++i) {
    napi_value row;
    napi_create_object(env, &row);
    set_text(env, row, "op", op);
    set_text(env, row, "name", rows[i]->name);
    set_archs(env, row, "arch", rows[i]->arch);
    spec(rows[i]->spec, row);
    push(env, array, row);
  }
}

static void set_dtypes(napi_env env, napi_value object, const char* name, DTypeSet set) {
  napi_value array;
  napi_create_array(env, &array);
  for (int i = 0; i < kDTypeCount; ++i) {
    if (has(set, static_cast<DType>(i))) push_text(env, array, kDTypes[i].name);
  }
  napi_set_named_property(env, object, name, array);
}

// The ops whose rows differ in nothing but their dtypes.
template <class Table>
static void add_row_op(napi_env env, napi_value array, const char* op, const Table& table) {
  add_rows(env, array, op, table.rows, table.count,
           [&](const auto& spec, napi_value row) { set_dtypes(env, row, "dtypes", spec.dtypes); });
}

static napi_value kernel_rows(napi_env env) {
  napi_value rows;
  napi_create_array(env, &rows);
  const LinearTable linear = linear_table();
  add_rows(env, rows, "linear", linear.rows, linear.count,
           [&](const LinearSpec& s, napi_value row) {
             napi_value kinds, computes;
             napi_create_array(env, &kinds);
             napi_create_array(env, &computes);
             for (int i = 0; i < kKindCount; ++i) {
               if (has(s.kinds, static_cast<Kind>(i))) push_text(env, kinds, kKinds[i].name);
             }
             for (int i = 0; i < kComputeCount; ++i) {
               if (s.computes >> i & 1u) push_text(env, computes, kComputeNames[i]);
             }
             napi_set_named_property(env, row, "formats", kinds);
             napi_set_named_property(env, row, "computes", computes);
             napi_value layouts;
             napi_create_array(env, &layouts);
             for (int i = 0; i < kLayoutCount; ++i) {
               if (s.layouts >> i & 1u)
                 push_text(env, layouts, layout_name(static_cast<Layout>(i)));
             }
             napi_set_named_property(env, row, "layouts", layouts);
             set_dtypes(env, row, "x", s.x);
             set_boolean(env, row, "zeros", s.zeros);
             set_boolean(env, row, "floatZeros", s.float_zeros);
             set_boolean(env, row, "oneScale", s.one_scale);
             set_boolean(env, row, "blockScales", s.block_scales);
             set_boolean(env, row, "fp8Sums", s.fp8_sums);
             set_boolean(env, row, "manyTables", s.many_tables);
             set_boolean(env, row, "planes", s.planes);
             set_number(env, row, "mMin", static_cast<double>(s.m_min));
             set_number(env, row, "mMax", static_cast<double>(s.m_max));
             set_number(env, row, "nMultiple", static_cast<double>(s.n_multiple));
             set_number(env, row, "kMultiple", static_cast<double>(s.k_multiple));
             set_number(env, row, "groupMultiple", static_cast<double>(s.group_multiple));
             set_number(env, row, "groupMax", static_cast<double>(s.group_max));
           });
  const AttentionTable attention = attention_table();
  add_rows(env, rows, "attention", attention.rows, attention.count,
           [&](const AttentionSpec& s, napi_value row) {
             set_dtypes(env, row, "dtypes", s.dtypes);
             set_number(env, row, "headDimMax", static_cast<double>(s.head_dim_max));
             set_number(env, row, "headDimMultiple", static_cast<double>(s.head_dim_multiple));
             napi_value paged;
             napi_create_array(env, &paged);
             for (int i = 0; i < kKvFormatCount; ++i) {
               if (has(s.paged, static_cast<KvFormat>(i)))
                 push_text(env, paged, kKvFormats[i].name);
             }
             napi_set_named_property(env, row, "kvFormats", paged);
             set_boolean(env, row, "bias", s.bias);
             set_boolean(env, row, "tensors", s.tensors);
             set_boolean(env, row, "fp8Sums", s.fp8_sums);
           });
  const QuantizeTable quantize = quantize_table();
  add_rows(env, rows, "quantize", quantize.rows, quantize.count,
           [&](const QuantizeSpec& s, napi_value row) {
             set_dtypes(env, row, "floats", s.floats);
             set_dtypes(env, row, "codes", s.codes);
           });
  add_row_op(env, rows, "norm", norm_table());
  add_row_op(env, rows, "rope", rope_table());
  add_row_op(env, rows, "kv", kv_table());
  add_row_op(env, rows, "embedding", embedding_table());
  add_row_op(env, rows, "elementwise", elementwise_table());
  add_row_op(env, rows, "copy", copy_table());
  add_row_op(env, rows, "softmax", softmax_table());
  return rows;
}

// describe(library): the library is that of the CUDA rows, which are listed if it is there;
// undefined leaves them out.
napi_value describe(napi_env env, napi_callback_info info) {
  Reader r(env, info, "describe");
  char library[1024];
  if (r.text("library", library, sizeof library)) load_cuda_library(library);
  if (r.failed()) return nullptr;
  napi_value out;
  napi_create_object(env, &out);
  set_words(env, out, "dtypes", kDTypeCount, [](int i) { return kDTypes[i].name; });
  set_words(env, out, "formats", kKindCount, [](int i) { return kKinds[i].name; });
  set_words(env, out, "layouts", kLayoutCount,
            [](int i) { return layout_name(static_cast<Layout>(i)); });
  set_words(env, out, "zeroPoints", kZeroCount, [](int i) { return kZeroNames[i]; });
  set_words(env, out, "tables", kTableCount, [](int i) { return kTableNames[i]; });
  set_words(env, out, "activations", 8, [](int i) { return kActivationNames[i]; });
  set_words(env, out, "computes", kComputeCount, [](int i) { return kComputeNames[i]; });
  set_words(env, out, "scores", 2, [](int i) { return kScoreNames[i]; });
  set_words(env, out, "kvFormats", kKvFormatCount, [](int i) { return kKvFormats[i].name; });
  set_words(env, out, "errorCodes", kCodes, [](int i) { return code_name(static_cast<Code>(i)); });
  set_words(env, out, "archs", kArchCount, [](int i) { return kArchs[i].name; });
  napi_set_named_property(env, out, "kernels", kernel_rows(env));
  return out;
}

// hostInfo(root): `root` is a folder that holds the /proc and /sys of a test.
napi_value host_info(napi_env env, napi_callback_info info) {
  Reader r(env, info, "hostInfo");
  char root[512] = "";
  r.text("root", root, sizeof root);
  if (r.failed()) return nullptr;
  const CpuInfo cpu = cpu_info(root);
  napi_value out;
  napi_create_object(env, &out);
  set_text(env, out, "name", cpu.name);
  set_number(env, out, "cores", cpu.cores);
  set_number(env, out, "memory", static_cast<double>(cpu.memory));
  set_number(env, out, "l2", static_cast<double>(cpu.l2));
  set_number(env, out, "l3", static_cast<double>(cpu.l3));
  set_archs(env, out, "archs", cap_arch(detect_cpu(), env_of(env)->arch_cap.c_str()));
  return out;
}

// chosenRow(): the row that the last op of this environment chose.
napi_value chosen_row(napi_env env, napi_callback_info) {
  napi_value out;
  napi_create_string_utf8(env, env_of(env)->chosen, NAPI_AUTO_LENGTH, &out);
  return out;
}

napi_value device_info(napi_env env, napi_callback_info info) {
  Reader r(env, info, "device");
  const DeviceHandle* handle = r.device("device");
  if (r.failed()) return nullptr;
  const MemoryUsage usage = memory_usage(handle->device->memory);
  const QueueStats queue = queue_stats(handle->device->queue);
  CudaStats ops = {};
  if (handle->device->cuda != nullptr) ops = cuda_stats(handle->device->cuda_queue);
  napi_value out;
  napi_create_object(env, &out);
  set_number(env, out, "threads", handle->device->threads);
  set_archs(env, out, "archs", handle->device->arch);
  // Scratch is no tensor: like cached blocks it is kept for ops to come.
  set_number(env, out, "used", static_cast<double>(usage.used - ops.scratch));
  set_number(env, out, "cached", static_cast<double>(usage.cached + ops.scratch));
  set_number(env, out, "peak", static_cast<double>(usage.peak));
  set_number(env, out, "limit", static_cast<double>(usage.limit));
  set_number(env, out, "guardFaults", static_cast<double>(usage.guard_faults));
  set_number(env, out, "queued", static_cast<double>(queue.queued + ops.queued));
  set_number(env, out, "finished", static_cast<double>(queue.finished + ops.queued));
  set_number(env, out, "failed", static_cast<double>(queue.failed + ops.failed));
  return out;
}

}  // namespace lowbit::binding
