"""linear on a GPU against PyTorch's best call for the same case, in one process by one method: python3 torch.py [LIBRARY].

The rows of liblowbit_cuda.so (default: build/Release of this tree) are called as the addon calls them, through the structs of
csrc/linear/linear.h, which are spelled out below and belong to one ABI number. Medians of single launches, random data, result
checked before timing. Before each launch the L2 cache is filled with lines of something else: by reading, as the layer before
leaves it, or (--flush write) by writing, as triton.testing.do_bench does it: then every line that a launch reads costs the
write of another one besides. With --graph also as graphs of many calls whose weights together are several times the L2 cache,
own calls and rivals by turns, the median of the replays: no launch is waited for, and own kernels begin early as they do after
device.capture(). A line of JSON for each case on
stdout or into --save, a table on stderr. The bound is the longer of memory (bytes once, at the bandwidth of a plain read
measured in the same run) and arithmetic (products a cycle of the data sheet at the highest clock).
"""
import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time

sys.path.pop(0)  # this folder, whose torch is this very file
import torch
import torch.nn.functional as F

ABI = 6
i32, i64, ptr = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


def struct(name, *fields):
    return type(name, (ctypes.Structure,), {"_fields_": [(f, t) for t, names in fields for f in names.split()]})


Tensor = struct("Tensor", (ptr, "data"), (i64 * 5, "shape strides"), (i32, "rank dtype device_kind device_id"))
Format = struct("Format", (i32, "kind"), (i64, "group_n group_k"), (i32, "scale_dtype zero_type table_type"))
Weight = struct("Weight", (Format, "format"), (i32, "layout"), (i64, "n k"), (ptr, "data"), (i32, "device_kind device_id"),
                (ctypes.c_float, "tensor_scale"))
Args = struct("Args", (Tensor, "x x_scale"), (Weight, "w"), (Tensor, "bias residual out out_scale"), (i32, "activation compute"))
Spec = struct("Spec", (ctypes.c_uint32, "kinds layouts x computes"), (ctypes.c_bool, "zeros"),
              (i64, "m_max n_multiple k_multiple group_multiple m_min group_max"),
              (ctypes.c_bool, "float_zeros one_scale codes_only block_scales fp8_sums many_tables"))
Kernel = struct("Kernel", (ctypes.c_char_p, "name"), (ctypes.c_uint32, "arch"), (Spec, "spec"), (ptr, "workspace run"))
Context = struct("Context", (ptr, "pool scratch stream"), (i32, "multiprocessors"), (ptr, "check"), (ctypes.c_bool, "early"))
Status = struct("Status", (i32, "code"), (ctypes.c_char * 244, "text"))
Rows = struct("Rows", (ctypes.c_char_p, "op"), (ctypes.POINTER(ctypes.POINTER(Kernel)), "rows"), (i32, "count"))
Api = struct("Api", (i32, "abi runtime"), (ctypes.POINTER(Rows), "ops"), (i32, "op_count"), (ptr, "error_text device_count device_info use"))

bf16, f16, f32, i8 = torch.bfloat16, torch.float16, torch.float32, torch.int8
DTYPES = {f32: 0, f16: 1, bf16: 2, i8: 4, torch.float8_e4m3fn: 6}
NONE = 9
KINDS = {"f16": 1, "bf16": 2, "int8": 3, "int4": 4, "int2": 6, "int1": 7, "ternary": 8, "fp8_e4m3": 9}
LAYOUTS = {"rows": 0, "frag64": 3}
COMPUTES = {"float": 0, "int8": 1, "fp8": 2}
SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336), "square": (8192, 8192)}
GPU = "cuda"


def library(path):
    lib = ctypes.CDLL(path)
    lib.lowbit_cuda_api.restype = ctypes.POINTER(Api)
    api = lib.lowbit_cuda_api().contents
    if api.abi != ABI:
        sys.exit(f"{path} has ABI {api.abi}, this script knows {ABI}")
    ctypes.CFUNCTYPE(i32, i32)(api.use)(torch.cuda.current_device())
    ops = {api.ops[i].op.decode(): api.ops[i] for i in range(api.op_count)}
    linear = ops["linear"]
    return {linear.rows[i].contents.name.decode(): linear.rows[i].contents for i in range(linear.count)}


def tensor(t):
    if t is None:
        return Tensor(dtype=NONE)
    rank = t.dim()
    return Tensor(t.data_ptr(), (i64 * 5)(*t.shape), (i64 * 5)(*t.stride()), rank, DTYPES[t.dtype], 1, 0)


def caller(row, x, x_scale, weight, out, compute):
    """A function that queues the row's call on torch's stream; .context is what it passes."""
    args = Args(x=tensor(x), x_scale=tensor(x_scale), w=weight, bias=tensor(None), residual=tensor(None), out=tensor(out),
                out_scale=tensor(None), compute=COMPUTES[compute])
    context = Context(multiprocessors=torch.cuda.get_device_properties(0).multi_processor_count)
    scratch = None
    if row.workspace:
        size = ctypes.CFUNCTYPE(ctypes.c_size_t, ptr, i32)(row.workspace)(ctypes.addressof(args), 1)
        scratch = torch.empty(size, device=GPU, dtype=torch.uint8)
        context.scratch = scratch.data_ptr()
    status = Status()
    run = ctypes.CFUNCTYPE(None, ptr, ptr, ptr)(row.run)

    def launch(keep=(x, x_scale, out, scratch)):
        context.stream = torch.cuda.current_stream().cuda_stream
        run(ctypes.addressof(status), ctypes.addressof(args), ctypes.addressof(context))
        if status.code:
            raise RuntimeError(status.text.decode())

    launch.context = context
    return launch


def weight_of(kind, layout, n, k, data, group_k=0, scale_dtype=None, group_n=1):
    scale = NONE if scale_dtype is None else DTYPES[scale_dtype]
    return Weight(Format(KINDS[kind], group_n, group_k, scale, 0, 0), LAYOUTS[layout], n, k, data.data_ptr(), 1, 0, 1.0)


def fragments(codes, scales, group):
    """int4 codes [N, K] of a byte each and scales [N, K / group] in frag64 (csrc/format/layout.h)."""
    n, k = codes.shape
    places = [[], []]
    for thread in range(128):
        for place in range(32):
            j, nibble = place // 8, place % 8
            row = thread // 32 * 16 + thread % 32 // 4 + nibble % 2 * 8
            column = 16 * j + thread % 4 * 2 + nibble % 4 // 2 * 8 + nibble // 4
            places[nibble % 2].append(row * 64 + column)
    low, high = (torch.tensor(p, device=GPU) for p in places)
    blocks = codes.view(n // 64, 64, k // 64, 64).permute(0, 2, 1, 3).reshape(n // 64, k // 64, 4096)
    packed = (blocks[:, :, low] | blocks[:, :, high] << 4).view(n // 64, k // 128, 4096)
    behind = scales.view(n // 64, 64, k // 128, 128 // group).permute(0, 2, 3, 1).contiguous()
    return torch.cat([packed, behind.view(torch.uint8).view(n // 64, k // 128, -1)], 2).contiguous()


class Case:
    """One format: data, the library's call, and the rivals' calls by name."""

    def __init__(self, name, row, m_list, bits, peak, make):
        self.name, self.row, self.m_list, self.bits, self.peak, self.make = name, row, m_list, bits, peak, make


def dense(dtype, kind):
    def make(row, m, n, k):
        x, w = torch.randn(m, k, device=GPU).to(dtype), torch.randn(n, k, device=GPU).to(dtype)
        out = torch.empty(m, n, device=GPU, dtype=dtype)
        own = caller(row, x, None, weight_of(kind, "rows", n, k, w), out, "float")
        return own, out, lambda: F.linear(x, w), {"cuBLAS": lambda: F.linear(x, w)}, w
    return make


def int8(row, m, n, k):
    x = torch.randint(-127, 128, (m, k), device=GPU, dtype=i8)
    w = torch.randint(-127, 128, (n, k), device=GPU, dtype=i8)
    xs, ws = torch.rand(m, device=GPU) * 0.02 + 0.01, torch.rand(n, device=GPU) * 0.02 + 0.01
    block = torch.cat([w.view(-1).view(torch.uint8), ws.view(torch.uint8)])  # n * k is a multiple of 64
    out = torch.empty(m, n, device=GPU, dtype=bf16)
    own = caller(row, x, xs, weight_of("int8", "rows", n, k, block, k, f32), out, "int8")
    padded = torch.cat([x, x.new_zeros(32 - m, k)]) if m < 32 else x  # _int_mm wants more than 16 rows
    want = lambda: torch._int_mm(padded, w.t())[:m].double() * xs.double()[:, None] * ws.double()
    return own, out, want, {"_int_mm (s32 out)": lambda: torch._int_mm(padded, w.t())}, (w, block, ws)


def fp8(row, m, n, k):
    e4m3 = torch.float8_e4m3fn
    x, w = (torch.randn(m, k, device=GPU) * 40).to(e4m3), (torch.randn(n, k, device=GPU) * 40).to(e4m3)
    xs, ws = torch.rand(m, device=GPU) * 0.02 + 0.01, torch.rand(n, device=GPU) * 0.02 + 0.01
    block = torch.cat([w.view(torch.uint8).view(-1), ws.view(torch.uint8)])
    out = torch.empty(m, n, device=GPU, dtype=bf16)
    own = caller(row, x, xs, weight_of("fp8_e4m3", "rows", n, k, block, k, f32), out, "fp8")
    padded = torch.cat([x.view(torch.uint8), x.new_zeros(16 - m, k).view(torch.uint8)]).view(e4m3) if m < 16 else x
    scales = torch.cat([xs, xs.new_ones(16 - m)]) if m < 16 else xs
    one = torch.ones((), device=GPU)
    rival = lambda fast: torch._scaled_mm(padded, w.t(), scales[:, None], ws[None], out_dtype=bf16, use_fast_accum=fast)
    rivals = {"_scaled_mm row, fast": lambda: rival(True),
              "_scaled_mm tensor, fast": lambda: torch._scaled_mm(padded, w.t(), one, one, out_dtype=bf16, use_fast_accum=True),
              "_scaled_mm tensor, exact": lambda: torch._scaled_mm(padded, w.t(), one, one, out_dtype=bf16, use_fast_accum=False)}
    return own, out, lambda: (x.float() @ w.float().t()) * xs[:, None] * ws, rivals, (w, block, ws)


def codes4(compute, group):
    """int4 weights and x in eight bits, against fp8 on both sides."""
    def make(row, m, n, k):
        e4m3 = torch.float8_e4m3fn
        codes = torch.randint(0, 16, (n, k), device=GPU, dtype=torch.uint8)
        scales = (torch.rand(n, k // group, device=GPU) * 0.1 + 0.05).half()
        block = fragments(codes, scales, group)
        w = (codes.float() - 8) * scales.float().repeat_interleave(group, 1)
        x = torch.randint(-127, 128, (m, k), device=GPU, dtype=i8) if compute == "int8" else (torch.randn(m, k, device=GPU) * 40).to(e4m3)
        xs = torch.rand(m, device=GPU) * 0.02 + 0.01
        out = torch.empty(m, n, device=GPU, dtype=bf16)
        own = caller(row, x, xs, weight_of("int4", "frag64", n, k, block, group, f16), out, compute)
        rows = max(m, 16)
        x8, w8 = torch.randn(rows, k, device=GPU).to(e4m3), (w * 10).to(e4m3)
        one, xs8, ws8 = torch.ones((), device=GPU), torch.ones(rows, 1, device=GPU), torch.ones(1, n, device=GPU)
        rivals = {"_scaled_mm row, fast": lambda: torch._scaled_mm(x8, w8.t(), xs8, ws8, out_dtype=bf16, use_fast_accum=True),
                  "_scaled_mm tensor, fast": lambda: torch._scaled_mm(x8, w8.t(), one, one, out_dtype=bf16, use_fast_accum=True)}
        return own, out, lambda: (x.float() @ w.t()) * xs[:, None], rivals, (block, w)
    return make


def fp8_blocks(row, m, n, k):
    """Scales of 1 by 128 of x and 128 by 128 of w."""
    e4m3 = torch.float8_e4m3fn
    x, w = (torch.randn(m, k, device=GPU) * 40).to(e4m3), (torch.randn(n, k, device=GPU) * 40).to(e4m3)
    xs, ws = torch.rand(m, k // 128, device=GPU) * 0.02 + 0.01, torch.rand(n // 128, k // 128, device=GPU) * 0.02 + 0.01
    block = torch.cat([w.view(torch.uint8).view(-1), ws.view(torch.uint8).view(-1)])
    out = torch.empty(m, n, device=GPU, dtype=bf16)
    own = caller(row, x, xs, weight_of("fp8_e4m3", "rows", n, k, block, 128, f32, 128), out, "fp8")
    more = max(0, 16 - m)
    padded = torch.cat([x.view(torch.uint8), x.new_zeros(more, k).view(torch.uint8)]).view(e4m3)
    scales = torch.cat([xs, xs.new_ones(more, k // 128)]).t().contiguous().t()  # rows of x innermost, as it wants them
    want = lambda: (x.float() * xs.repeat_interleave(128, 1)) @ (w.float() * ws.repeat_interleave(128, 0).repeat_interleave(128, 1)).t()
    rivals = {"_scaled_mm blocks": lambda: torch._scaled_mm(padded, w.t(), scales, ws.t(), out_dtype=bf16)}
    return own, out, want, rivals, (w, block, ws)


def int4(dtype, group):
    def make(row, m, n, k):
        x = torch.randn(m, k, device=GPU).to(dtype)
        codes = torch.randint(0, 16, (n, k), device=GPU, dtype=torch.uint8)
        scales = (torch.rand(n, k // group, device=GPU) * 0.1 + 0.05).half()
        block = fragments(codes, scales, group)
        w = ((codes.float() - 8) * scales.float().repeat_interleave(group, 1)).to(dtype)
        out = torch.empty(m, n, device=GPU, dtype=dtype)
        own = caller(row, x, None, weight_of("int4", "frag64", n, k, block, group, f16), out, "float")
        rivals = {"cuBLAS 16 bits": lambda: F.linear(x, w)}
        if m <= 32 and dtype == bf16:
            tiny = torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], 8)
            pairs = torch.stack([scales.t().to(bf16), torch.zeros_like(scales.t()).to(bf16)], 2).contiguous()
            rivals["tinygemm"] = lambda: torch.ops.aten._weight_int4pack_mm(x, tiny, group, pairs)
        return own, out, lambda: F.linear(x, w), rivals, (block, w)
    return make


def saved(kind, bits, group):
    """Weights as they are saved, codes in rows, for x in bf16. No group: one scale a row."""
    def make(row, m, n, k, group=group):
        group = group or k
        x = torch.randn(m, k, device=GPU).to(bf16)
        codes = torch.randint(0, 256, (n, k * bits // 8), device=GPU, dtype=torch.uint8)
        if kind == "ternary":  # three of its four codes
            codes = codes & ~(codes >> 1 & 0x55)
        if kind == "fp8_e4m3":
            codes = torch.randn(n, k, device=GPU).to(torch.float8_e4m3fn).view(torch.uint8)
        scales = (torch.rand(n, k // group, device=GPU) * 0.1 + 0.05).half()
        block = torch.cat([codes.view(-1), scales.view(torch.uint8).view(-1)])
        values = codes.view(torch.float8_e4m3fn if kind == "fp8_e4m3" else i8) if bits == 8 else torch.stack([codes >> s & (1 << bits) - 1 for s in range(0, 8, bits)], 2)
        middle = 0 if bits == 8 else 1 if kind == "ternary" else 1 << bits - 1
        w = ((values.reshape(n, k).float() - middle) * scales.float().repeat_interleave(group, 1)).to(bf16)
        out = torch.empty(m, n, device=GPU, dtype=bf16)
        own = caller(row, x, None, weight_of(kind, "rows", n, k, block, group, f16), out, "float")
        return own, out, lambda: F.linear(x, w), {"cuBLAS 16 bits": lambda: F.linear(x, w)}, (block, w)
    return make


FEW, MANY = [1, 8, 16, 32, 64], [128, 256, 1024, 4096, 8192]
CASES = [
    Case("bf16", "linear_bf16_sm90a", FEW + MANY, 16, 2048, dense(bf16, "bf16")),
    Case("f16", "linear_f16_sm90a", [16, 4096], 16, 2048, dense(f16, "f16")),
    Case("int8", "linear_int8_i8_sm90a", FEW + MANY, 8, 4096, int8),
    Case("fp8", "linear_fp8_sm90a", FEW + MANY, 8, 4096, fp8),
    Case("blocks fp8", "linear_fp8_sm90a", FEW + MANY, 8, 4096, fp8_blocks),
    Case("int4 g128, x bf16", "linear_int4_bf16_sm90a", FEW + MANY, 4.125, 2048, int4(bf16, 128)),
    Case("int4 g128, x f16", "linear_int4_f16_sm90a", FEW + [4096], 4.125, 2048, int4(f16, 128)),
    Case("int4 g32, x f16", "linear_int4_f16_sm90a", [1, 16, 64, 1024], 4.5, 2048, int4(f16, 32)),
    Case("W4A8 int8 g128", "linear_int4_i8_sm90a", FEW, 4.125, 4096, codes4("int8", 128)),
    Case("W4A8 fp8 g128", "linear_int4_fp8_sm90a", FEW, 4.125, 4096, codes4("fp8", 128)),
    Case("saved int8, x bf16", "linear_codes_bf16_sm90a", [1, 8, 16], 8, 2048, saved("int8", 8, 0)),
    Case("saved int8 g128, x bf16", "linear_codes_bf16_sm90a", [1, 16, 64, 1024], 8.125, 2048, saved("int8", 8, 128)),
    Case("saved fp8, x bf16", "linear_codes_bf16_sm90a", [1, 16], 8, 2048, saved("fp8_e4m3", 8, 0)),
    Case("saved int4 g128, x bf16", "linear_codes_bf16_sm90a", [1, 16, 64, 1024], 4.125, 2048, saved("int4", 4, 128)),
    Case("saved int2 g128, x bf16", "linear_codes_bf16_sm90a", [1, 16, 64, 1024], 2.125, 2048, saved("int2", 2, 128)),
    Case("saved ternary, x bf16", "linear_codes_bf16_sm90a", [1, 16], 2, 2048, saved("ternary", 2, 0)),
]


FLUSH = {}


def quantiles(launch, milliseconds):
    """Median, tenth and ninetieth of a hundred in us."""
    cache, write = FLUSH["cache"], FLUSH["write"]
    clear = cache.zero_ if write else cache.sum
    launch()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(2)]
    torch.cuda.synchronize()
    pairs[0][0].record()
    for _ in range(5):
        clear()
        launch()
    pairs[0][1].record()
    torch.cuda.synchronize()
    count = max(10, min(200, int(milliseconds / pairs[0][0].elapsed_time(pairs[0][1]) * 5)))
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, stop in pairs:
        clear()
        start.record()
        launch()
        stop.record()
    torch.cuda.synchronize()
    times = torch.tensor([start.elapsed_time(stop) * 1e3 for start, stop in pairs])
    return torch.quantile(times, torch.tensor([0.5, 0.1, 0.9])).tolist()


def graph_of(calls, count):
    """A graph of `count` calls by turns."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            calls[i % len(calls)]()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def replays(case, row, m, n, k, us, milliseconds, rounds=7):
    """us a call within a graph: own under "", then each rival."""
    copies = max(2, min(32, -(-(160 << 20) // int(n * k * case.bits / 8))))
    count = max(copies, min(100, int(milliseconds * 1e3 / rounds / us)))
    made = [case.make(row, m, n, k) for _ in range(copies)]
    for own, *_ in made:
        own.context.early = True
    calls = {"": [own for own, *_ in made]}
    calls.update({rival: [each[3][rival] for each in made] for rival in made[0][3]})
    graphs, times = {}, {}
    for name, turns in calls.items():
        try:
            graphs[name], times[name] = graph_of(turns, count), []
        except RuntimeError as fault:
            print(f"{name} in a graph: {str(fault).splitlines()[0]}", file=sys.stderr)
    for _ in range(rounds):
        for name, graph in graphs.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            stop.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(stop) * 1e3 / count)
    return {name: statistics.median(each) for name, each in times.items()}


def mean(ratios):
    return torch.tensor(ratios).log().mean().exp().item() if ratios else float("nan")


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.join(here, "..", "..")
    parser = argparse.ArgumentParser()
    parser.add_argument("library", nargs="?", default=os.path.join(root, "build", "Release", "liblowbit_cuda.so"))
    parser.add_argument("--save", help="append the lines to this file")
    parser.add_argument("--commit", help="what the library was built from, where that is not this tree")
    parser.add_argument("--case", help="only cases whose name begins so")
    parser.add_argument("--m", help="only these numbers of rows")
    parser.add_argument("--shape", choices=SHAPES, help="only this layer")
    parser.add_argument("--sm80", action="store_true", help="the rows of sm_80 in place of those of sm_90a")
    parser.add_argument("--flush", choices=["read", "write"], default="read", help="how the L2 cache is emptied before each launch")
    parser.add_argument("--graph", action="store_true", help="replays of graphs as well")
    parser.add_argument("--ms", type=float, default=15, help="of launches for each figure")
    options = parser.parse_args()
    torch.manual_seed(1)
    FLUSH.update(cache=torch.zeros(64 << 20, device=GPU, dtype=torch.int32), write=options.flush == "write")
    rows = library(options.library)
    properties = torch.cuda.get_device_properties(0)
    clock = float(subprocess.run(["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits", "-i", "0"],
                                 capture_output=True, text=True).stdout.split()[0]) * 1e6
    plain = torch.zeros(1 << 30, device=GPU, dtype=torch.uint8).view(f32)
    read = plain.numel() * 4 / (quantiles(lambda: plain.sum(), 60)[0] * 1e-6)
    del plain
    commit = options.commit or subprocess.run(["git", "-C", root, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    origin = {"machine": properties.name, "commit": commit, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "flush": options.flush}
    print(f"{properties.name}, torch {torch.__version__}, read {read / 1e12:.2f} TB/s", file=sys.stderr)
    sink = open(options.save, "a") if options.save else sys.stdout
    wanted = [int(m) for m in options.m.split(",")] if options.m else None
    for case in CASES:
        if options.sm80:
            case.row = case.row.replace("sm90a", "sm80")
        if case.row not in rows or (options.case and not case.name.startswith(options.case)):
            continue
        for m in case.m_list:
            if wanted and m not in wanted:
                continue
            ratios, cells, against, replayed = [], [], {}, []
            for name, (n, k) in SHAPES.items():
                if options.shape and name != options.shape:
                    continue
                own, out, want, rivals, _keep = case.make(rows[case.row], m, n, k)
                own()
                error = ((out.double() - want().double()).norm() / out.double().norm()).item()
                if not error < 6e-3:
                    print(f"{case.name} M={m} {name}: WRONG, off by {error:.1e}", file=sys.stderr)
                    cells.append("wrong")
                    continue
                us, p10, p90 = quantiles(own, options.ms)
                times = {}
                for rival, call in rivals.items():
                    try:
                        times[rival] = quantiles(call, options.ms)[0]
                    except RuntimeError as fault:
                        print(f"{rival}: {str(fault).splitlines()[0]}", file=sys.stderr)
                count = n * k * case.bits / 8 + out.numel() * 2 + m * k * (2 if case.bits != 8 else 1)
                arithmetic = 2.0 * m * n * k
                bounds = {"memory": count / read * 1e6,
                          "arithmetic": arithmetic / (2 * case.peak * properties.multi_processor_count * clock) * 1e6}
                limit = max(bounds, key=bounds.get)
                bound = bounds[limit]
                best = min(times, key=times.get) if times else None
                word = "int4" if case.name.startswith("W4A8") else case.name.removeprefix("blocks ").removeprefix("saved ").split()[0].rstrip(",")
                line = {"op": "linear", "format": "fp8_e4m3" if word == "fp8" else word,
                        "compute": "int8" if "_i8_" in case.row else "fp8" if "_fp8_" in case.row else "float", "row": case.row, "case": name, "shape": f"M{m} {n}x{k} {case.name}", "m": m, "n": n, "k": k,
                        "us": us, "p10": p10, "p90": p90, "gbs": count / us / 1e3, "gops": arithmetic / us / 1e3,
                        "bound": limit, "boundUs": bound, "percent": 100 * bound / us, "rivals": times}
                if best:
                    line.update(peer=best, peerUs=times[best], ratio=times[best] / us)
                    ratios.append(times[best] / us)
                    for rival, each in times.items():
                        against.setdefault(rival, []).append(each / us)
                if options.graph:
                    graph = replays(case, rows[case.row], m, n, k, us, options.ms)
                    line.update(graphUs=graph.pop(""), graphRivals={key: float(f"{v:.4g}") for key, v in graph.items()})
                    if graph:
                        line.update(graphRatio=min(graph.values()) / line["graphUs"])
                        replayed.append(line["graphRatio"])
                rounded = {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in line.items()}
                rounded["rivals"] = {key: float(f"{v:.4g}") for key, v in times.items()}
                print(json.dumps({**rounded, **origin}), file=sink, flush=True)
                cells.append(f"{us:.1f} {100 * bound / us:.0f}% {ratios[-1]:.2f}" if best else f"{us:.1f} {100 * bound / us:.0f}%")
            print(f"{case.name:18} M={m:<5}" + "".join(f"{c:>18}" for c in cells) + f"   {mean(ratios):.2f}" + "".join(f"  {mean(r):.2f} {rival}" for rival, r in against.items() if len(against) > 1)
                  + (f"  graphs {mean(replayed):.2f}" if replayed else ""), file=sys.stderr, flush=True)


main()
