// Reader: positional arguments to csrc structs. Each argument is named as it is read, and its name
// stands in the error that a wrong one gives. After the first error the rest reads as absent, so a
// binding needs one test at its end.
#pragma once

#include <node_api.h>

#include "binding/error.h"
#include "binding/handle.h"

namespace lowbit::binding {

inline constexpr size_t kMaxArguments = 24;

class Reader {
 public:
  Reader(napi_env env, napi_callback_info info, const char* op);

  Tensor input(const char* name);                // a Tensor
  Tensor optional(const char* name);             // a Tensor or undefined
  Weight weight(const char* name);               // a Weight
  KvCache cache(const char* name, bool writes);  // a KvCache; whether the op writes it
  bool at_cache();                               // whether the next one is a KvCache
  // A Tensor; an object without a handle, which the call fills with a new tensor as `infer` says;
  // or undefined.
  template <class Args>
  void output(const char* name, Tensor* slot, Status (*infer)(const Args&, Tensor*),
              const Args& args) {
    Tensor made = absent_tensor();
    napi_value shell_object = existing_output(name, slot);
    if (shell_object == nullptr) return;
    const Status status = infer(args, &made);
    if (!is_ok(status)) return fail(status);
    add_shell(slot, shell_object, made);
  }

  // Where the caller gives an output, what the call says of outputs must be true of it; none says
  // nothing.
  void agree(const char* name, const Tensor& given, const char* option, DType meant);
  void agree_scales(const char* name, const Tensor& given, const char* option, bool by_block);

  DeviceHandle* device(const char* name);  // a Device, or what has one
  TensorHandle* tensor(const char* name);
  WeightHandle* weight_handle(const char* name);
  CacheHandle* cache_handle(const char* name);
  napi_value object(const char* name);  // an object without a handle, to be wrapped
  napi_value value();                   // whatever stands there
  napi_value peek();                    // the same, without passing over it
  bool absent();                        // is the next one undefined? (it is then passed over)
  double number(const char* name);
  int64_t integer(const char* name);  // a whole number within +-2^53
  bool boolean(const char* name);
  int word(const char* name, int count);                  // an index into one of the word lists
  DType optional_dtype(const char* name);                 // undefined: none
  bool text(const char* name, char* out, size_t size);    // false: undefined
  int shape(const char* name, int64_t (&out)[kMaxRank]);  // an array of sizes; its length
  // A typed array; null: undefined.
  void* bytes(const char* name, int64_t* size, napi_typedarray_type* type = nullptr);

  void fail(const Status& status);
  void fail_type(const char* name, const char* expected, napi_value got);
  bool failed() const { return failed_; }
  napi_env env() const { return env_; }
  const char* op() const { return op_; }
  DeviceHandle* owner() const { return owner_; }

  // What a queued op must hold, in order of reading.
  int reads = 0, writes = 0;
  Storage* read[kTaskStorages];
  Storage* written[kTaskStorages];
  // Outputs that the library makes once the call is found legal.
  struct Shell {
    Tensor* slot;
    napi_value object;
  };
  int shells = 0;
  Shell shell[4];

 private:
  napi_value next() { return at_ < count_ ? argv_[at_++] : undefined_; }
  bool own(DeviceHandle* device, const char* name);
  template <class Handle>
  Handle* accept_own(Handle* handle, napi_value value, const char* name, const char* expected);
  TensorHandle* accept(TensorHandle* handle, napi_value value, const char* name);
  napi_value existing_output(const char* name, Tensor* slot);
  void add_shell(Tensor* slot, napi_value object, Tensor made);

  napi_env env_;
  const char* op_;
  size_t count_ = kMaxArguments, at_ = 0;
  napi_value argv_[kMaxArguments];
  napi_value undefined_;
  DeviceHandle* owner_ = nullptr;
  const char* owner_name_ = "";
  bool failed_ = false;
};

}  // namespace lowbit::binding
