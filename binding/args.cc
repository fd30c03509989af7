#include "binding/args.h"

#include <cmath>

namespace lowbit::binding {

static constexpr double kMaxWhole = 9007199254740992.0;  // 2^53

Reader::Reader(napi_env env, napi_callback_info info, const char* op) : env_(env), op_(op) {
  napi_get_undefined(env, &undefined_);
  napi_get_cb_info(env, info, &count_, argv_, nullptr, nullptr);
  if (count_ > kMaxArguments) count_ = kMaxArguments;
}

void Reader::fail(const Status& status) {
  if (!failed_) binding::fail(env_, status);
  failed_ = true;
}

void Reader::fail_type(const char* name, const char* expected, napi_value got) {
  if (!failed_) binding::fail_type(env_, op_, name, expected, got);
  failed_ = true;
}

bool Reader::absent() {
  napi_valuetype type = napi_undefined;
  if (at_ < count_) napi_typeof(env_, argv_[at_], &type);
  if (type == napi_undefined || failed_) {
    ++at_;
    return true;
  }
  return false;
}

// All handles of a call belong to one device handle: its queue runs the op.
bool Reader::own(DeviceHandle* device, const char* name) {
  if (device->device == nullptr) {
    fail(error(Code::disposed, "%s: the device of %s is closed", op_, name));
    return false;
  }
  if (owner_ == nullptr) {
    owner_ = device;
    owner_name_ = name;
  } else if (owner_ != device) {
    fail(error(Code::device, "%s: %s is on another device than %s", op_, name, owner_name_));
    return false;
  }
  return true;
}

// The handle, unless it is none, disposed or of another device.
template <class Handle>
Handle* Reader::accept_own(Handle* handle, napi_value value, const char* name,
                           const char* expected) {
  if (handle == nullptr) {
    fail_type(name, expected, value);
  } else if (handle->storage == nullptr) {
    fail(error(Code::disposed, "%s: %s is disposed", op_, name));
  } else if (own(handle->device, name)) {
    return handle;
  }
  return nullptr;
}

TensorHandle* Reader::accept(TensorHandle* handle, napi_value value, const char* name) {
  return accept_own(handle, value, name, "a Tensor");
}

TensorHandle* Reader::tensor(const char* name) {
  napi_value value = next();
  return failed_ ? nullptr : accept(unwrap_tensor(env_, value), value, name);
}

WeightHandle* Reader::weight_handle(const char* name) {
  napi_value value = next();
  if (failed_) return nullptr;
  return accept_own(unwrap_weight(env_, value), value, name,
                    "a Weight (what device.load() returns)");
}

CacheHandle* Reader::cache_handle(const char* name) {
  napi_value value = next();
  if (failed_) return nullptr;
  return accept_own(unwrap_cache(env_, value), value, name,
                    "a KvCache (what device.kvCache() returns)");
}

bool Reader::at_cache() { return !failed_ && unwrap_cache(env_, peek()) != nullptr; }

Tensor Reader::input(const char* name) {
  const TensorHandle* handle = tensor(name);
  if (handle == nullptr) return absent_tensor();
  read[reads++] = handle->storage;
  return handle->view;
}

Tensor Reader::optional(const char* name) { return absent() ? absent_tensor() : input(name); }

Weight Reader::weight(const char* name) {
  const WeightHandle* handle = weight_handle(name);
  if (handle == nullptr) return {};
  read[reads++] = handle->storage;
  return handle->weight;
}

KvCache Reader::cache(const char* name, bool writes_it) {
  const CacheHandle* handle = cache_handle(name);
  if (handle == nullptr) return {};
  (writes_it ? written[writes++] : read[reads++]) = handle->storage;
  return handle->cache;
}

// Fills the slot from a Tensor or undefined and returns null; returns the object that is to become
// a tensor.
napi_value Reader::existing_output(const char* name, Tensor* slot) {
  *slot = absent_tensor();
  if (absent()) return nullptr;
  napi_value value = next();
  TensorHandle* handle = unwrap_tensor(env_, value);
  if (handle == nullptr) {
    napi_valuetype type = napi_undefined;
    napi_typeof(env_, value, &type);
    if (type == napi_object) return value;
  }
  handle = accept(handle, value, name);
  if (handle == nullptr) return nullptr;
  written[writes++] = handle->storage;
  *slot = handle->view;
  return nullptr;
}

void Reader::add_shell(Tensor* slot, napi_value object, Tensor made) {
  if (owner_ != nullptr) made.device = owner_->device->tag;
  *slot = made;
  shell[shells++] = {slot, object};
}

void Reader::agree(const char* name, const Tensor& given, const char* option, DType meant) {
  if (failed_ || meant == DType::none || !present(given) || given.dtype == meant) return;
  fail(error(Code::dtype, "%s: expected %s in %s, as %s says, but got %s", op_, name,
             dtype_name(meant), option, dtype_name(given.dtype)));
}

void Reader::agree_scales(const char* name, const Tensor& given, const char* option,
                          bool by_block) {
  if (failed_ || !present(given) || given.rank == (by_block ? 2 : 1)) return;
  fail(error(Code::shape, "%s: expected %s of shape %s, as %s says, but got %s", op_, name,
             by_block ? "[M, blocks of 128 columns]" : "[M]", option, shape_text(given).text));
}

DeviceHandle* Reader::device(const char* name) {
  napi_value value = next();
  if (failed_) return nullptr;
  if (TensorHandle* tensor = unwrap_tensor(env_, value)) {
    return accept(tensor, value, name) == nullptr ? nullptr : tensor->device;
  }
  if (CacheHandle* cache = unwrap_cache(env_, value)) {
    return accept_own(cache, value, "the KvCache", "") == nullptr ? nullptr : cache->device;
  }
  DeviceHandle* handle = unwrap_device(env_, value);
  if (handle == nullptr) fail_type(name, "a Device", value);
  return handle != nullptr && own(handle, name) ? handle : nullptr;
}

napi_value Reader::object(const char* name) {
  napi_value value = next();
  napi_valuetype type = napi_undefined;
  napi_typeof(env_, value, &type);
  if (type != napi_object) fail_type(name, "an object", value);
  return value;
}

napi_value Reader::value() { return next(); }

napi_value Reader::peek() { return at_ < count_ ? argv_[at_] : undefined_; }

double Reader::number(const char* name) {
  napi_value value = next();
  double out = 0;
  if (!failed_ && napi_get_value_double(env_, value, &out) != napi_ok) {
    fail_type(name, "a number", value);
  }
  return out;
}

int64_t Reader::integer(const char* name) {
  napi_value value = next();
  double out = 0;
  if (failed_) return 0;
  if (napi_get_value_double(env_, value, &out) != napi_ok || std::floor(out) != out ||
      std::fabs(out) > kMaxWhole) {
    fail_type(name, "a whole number", value);
    return 0;
  }
  return static_cast<int64_t>(out);
}

bool Reader::boolean(const char* name) {
  napi_value value = next();
  bool out = false;
  if (!failed_ && napi_get_value_bool(env_, value, &out) != napi_ok) {
    fail_type(name, "a boolean", value);
  }
  return out;
}

int Reader::word(const char* name, int count) {
  const int64_t index = integer(name);
  if (!failed_ && (index < 0 || index >= count)) {
    fail(error(Code::argument, "%s: %s is none of the words that it may be", op_, name));
  }
  return failed_ ? 0 : static_cast<int>(index);
}

DType Reader::optional_dtype(const char* name) {
  return absent() ? DType::none : static_cast<DType>(word(name, kDTypeCount));
}

bool Reader::text(const char* name, char* out, size_t size) {
  out[0] = 0;
  if (absent()) return false;
  napi_value value = next();
  size_t length = 0;
  if (napi_get_value_string_utf8(env_, value, out, size, &length) != napi_ok) {
    fail_type(name, "a string", value);
    return false;
  }
  return true;
}

int Reader::shape(const char* name, int64_t (&out)[kMaxRank]) {
  napi_value value = next();
  bool array = false;
  if (failed_) return 0;
  napi_is_array(env_, value, &array);
  if (!array) {
    fail_type(name, "an array of sizes", value);
    return 0;
  }
  uint32_t rank = 0;
  napi_get_array_length(env_, value, &rank);
  if (rank > kMaxRank) {
    fail(error(Code::shape, "%s: %s has %u dimensions, at most %d are supported", op_, name, rank,
               kMaxRank));
    return 0;
  }
  double total = 1;
  for (uint32_t i = 0; i < rank; ++i) {
    napi_value element;
    double size = -1;
    napi_get_element(env_, value, i, &element);
    if (napi_get_value_double(env_, element, &size) != napi_ok) {
      fail_type(name, "an array of sizes", element);
      return 0;
    }
    if (!(size >= 0) || std::floor(size) != size || size > kMaxWhole) {
      fail(error(Code::shape, "%s: %s[%u] is %g, expected a whole number that is not negative", op_,
                 name, i, size));
      return 0;
    }
    out[i] = static_cast<int64_t>(size);
    if (size > 0) total *= size;
  }
  // 2^48 elements are far past any memory; the bound keeps byte counts inside 64 bits.
  if (total > 281474976710656.0) {
    fail(error(Code::memory, "%s: %s asks for %g elements", op_, name, total));
    return 0;
  }
  return static_cast<int>(rank);
}

void* Reader::bytes(const char* name, int64_t* size, napi_typedarray_type* type) {
  *size = 0;
  if (absent()) return nullptr;
  napi_value value = next();
  napi_typedarray_type found;
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(env_, value, &found, &length, &data, nullptr, nullptr) != napi_ok) {
    fail_type(name, "a typed array", value);
    return nullptr;
  }
  // By napi_typedarray_type; 11 is Float16Array, which newer versions of Node have.
  static constexpr int kElement[] = {1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 2};
  *size = static_cast<int64_t>(length) * kElement[static_cast<int>(found) < 12 ? found : 0];
  if (type != nullptr) *type = found;
  static uint8_t empty;
  return data != nullptr ? data : &empty;
}

}  // namespace lowbit::binding
