// call_op: the whole way of an op from JavaScript to the queue, the same for every op. An op is a
// struct of
//   Args, Kernel                        the op's own types
//   kName                               its name in error texts
//   read(Reader&, Args&)                positions to fields
//   check, select, workspace, run       the op's public functions in csrc
//   preferred(env, args)                where there is a table of measurements: the name of the row
//                                       that it has for the call, or null
//   blame(args)                         where values are checked as the op runs: the sentence for
//                                       a bad one, or null if this call has none to check
#pragma once

#include <cstring>
#include <type_traits>

#include "binding/args.h"
#include "csrc/base/cuda_queue.h"
#include "csrc/base/kernel.h"

namespace lowbit::binding {

// Makes the outputs that the caller left to the library, in the order of reading.
bool make_outputs(Reader& reader);
// Writes "lowbit: <op> -> <row>" once per row to stderr when LB_LOG=1.
void log_choice(Env* env, const char* op, const char* row);
// CUDA: prepares the launch. False: it threw.
bool begin_launch(Reader& reader, size_t scratch_bytes, Blame blame, const void* args,
                  size_t args_bytes, CudaLaunch* launch);
// Fills a task's list of storages from the reader, one count each.
void hold_storages(const Reader& reader, Task* task);

template <class Op>
napi_value call_op(napi_env env, napi_callback_info info) {
  using Args = typename Op::Args;
  using Kernel = typename Op::Kernel;
  static_assert(std::is_trivially_copyable_v<Args> && sizeof(Args) <= kTaskArgs);
  Reader reader(env, info, Op::kName);
  Args args = {};
  Op::read(reader, args);
  char forced[80];
  const bool named = reader.text("row", forced, sizeof forced);
  if (reader.failed()) return nullptr;
  Env* state = env_of(env);
  Device* device = reader.owner()->device;
  const Kernel* row = nullptr;
  Status status = Op::check(args);
  if (is_ok(status)) {
    const char* fixed = state->forced_row.empty() ? nullptr : state->forced_row.c_str();
    Choice choice = {device->arch, named ? forced : fixed};
    if constexpr (requires { Op::preferred; }) choice.preferred = Op::preferred(*state, args);
    status = Op::select(args, choice, &row);
  }
  if (!is_ok(status)) return fail(env, status);
  state->chosen = row->name;
  if (!make_outputs(reader)) return nullptr;
  if (state->log) log_choice(state, Op::kName, row->name);
  if (device->cuda != nullptr) {
    Blame blame = nullptr;
    if constexpr (requires { Op::blame; }) blame = Op::blame(args);
    CudaLaunch launch;
    const size_t scratch = Op::workspace(args, *row, 1);
    if (!begin_launch(reader, scratch, blame, &args, sizeof args, &launch)) return nullptr;
    if (is_ok(launch.inherited)) status = Op::run(args, *row, launch.ctx);
    cuda_launch_end(device, launch, row->name, status);
    return nullptr;
  }
  Task* task = task_new(device->queue);
  if (task == nullptr) return fail(env, error(Code::memory, "%s: out of memory", Op::kName));
  std::memcpy(task->args, &args, sizeof args);
  task->row = row;
  task->row_name = row->name;
  task->run = [](Task& t, const Ctx& ctx) {
    return Op::run(*reinterpret_cast<const Args*>(t.args), *static_cast<const Kernel*>(t.row), ctx);
  };
  task->workspace = [](Task& t, int threads) {
    return Op::workspace(*reinterpret_cast<const Args*>(t.args), *static_cast<const Kernel*>(t.row),
                         threads);
  };
  hold_storages(reader, task);
  queue_push(device->queue, task);
  return nullptr;
}

}  // namespace lowbit::binding
