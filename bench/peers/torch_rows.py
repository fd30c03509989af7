"""The ops over rows on a GPU against copy_, in one process by one method: python3 torch_rows.py [LIBRARY...].

The rows of liblowbit_cuda.so (default: build/Release of this tree) are called as the addon calls them, through the structs of
csrc/*/*.h, which are spelled out below and belong to one ABI number. First every op is checked (--check alone stops there):
codes, scales and the bytes of a KV cache against the rule, bit for bit; floats against float64. Then times are taken: a graph of
calls over buffers that together exceed the L2 cache several times, and a graph of as many copies of as many bytes, half of them
read and half written, by turns; the median of the replays. Several libraries are measured in turn, for a comparison.
"""
import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [p for p in sys.path if os.path.abspath(p) != HERE]  # it has a torch.py of its own
import torch

ABI = 6
i32, i64, u32, f4, f8, ptr = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint32, ctypes.c_float, ctypes.c_double, ctypes.c_void_p


def struct(name, *fields):
    return type(name, (ctypes.Structure,), {"_fields_": [(f, t) for t, names in fields for f in names.split()]})


Tensor = struct("Tensor", (ptr, "data"), (i64 * 5, "shape strides"), (i32, "rank dtype device_kind device_id"))
Block = struct("Block", (i64, "k v k_scale k_zero v_scale v_zero bytes"))
Cache = struct("Cache", (ptr, "data"), (i32, "device_kind device_id format prefix_format"),
               (i64, "pages page_size kv_heads head_dim head_dim_v prefix_rows prefix_tokens"), (Block, "page prefix"))
ARGS = {
    "quantize": struct("QuantizeArgs", (Tensor, "floats codes scale"), (ctypes.c_bool, "inverse")),
    "norm": struct("NormArgs", (Tensor, "x weight bias residual out residual_out"), (f8, "eps"), (i32, "kind")),
    "softmax": struct("SoftmaxArgs", (Tensor, "x targets out"), (f4, "scale"), (i32, "function")),
    "rope": struct("RopeArgs", (Tensor, "x cos sin positions out"), (i64, "offset"), (i32, "pairing")),
    "elementwise": struct("ElementwiseArgs", (Tensor, "a b out"), (i32, "function")),
    "embedding": struct("EmbeddingArgs", (Tensor, "table ids out")),
    "kv": struct("KvArgs", (i32, "op"), (Cache, "cache"), (Tensor, "k v slots to bytes cos sin positions"), (i32, "pairing")),
}
Context = struct("Context", (ptr, "pool scratch stream"), (i32, "multiprocessors"), (ptr, "check"), (ctypes.c_bool, "early"))
Status = struct("Status", (i32, "code"), (ctypes.c_char * 244, "text"))
Rows = struct("Rows", (ctypes.c_char_p, "op"), (ctypes.POINTER(ptr), "rows"), (i32, "count"))
Api = struct("Api", (i32, "abi runtime"), (ctypes.POINTER(Rows), "ops"), (i32, "op_count"), (ptr, "error_text device_count device_info use"))

f32, f16, bf16, s8, e4m3, e5m2 = torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2
DTYPES = {f32: 0, f16: 1, bf16: 2, torch.int32: 3, s8: 4, torch.uint8: 5, e4m3: 6, e5m2: 7}
SHORT = {f32: "f32", f16: "f16", bf16: "bf16", s8: "i8", e4m3: "e4m3", e5m2: "e5m2"}
LIMITS = {s8: 127.0, e4m3: 448.0, e5m2: 57344.0}
NONE = 9
FORMATS = ["f32", "f16", "bf16", "fp8_e4m3", "int8", "int4"]
BITS = {"f32": 32, "f16": 16, "bf16": 16, "fp8_e4m3": 8, "int8": 8, "int4": 4}
GPU = "cuda"


class Library:
    """The CUDA row of each op."""

    def __init__(self, path):
        lib = ctypes.CDLL(os.path.abspath(path))
        lib.lowbit_cuda_api.restype = ctypes.POINTER(Api)
        api = lib.lowbit_cuda_api().contents
        if api.abi != ABI:
            sys.exit(f"{path} has ABI {api.abi}, this script knows {ABI}")
        ctypes.CFUNCTYPE(i32, i32)(api.use)(torch.cuda.current_device())
        self.name, self.run, self.lib = os.path.basename(path).removesuffix(".so"), {}, lib
        for i in range(api.op_count):
            op = api.ops[i].op.decode()
            if op in ARGS:
                specs = 2 if op == "quantize" else 1
                kernel = struct("Kernel", (ctypes.c_char_p, "name"), (u32, "arch"), (u32 * specs, "spec"), (ptr, "workspace run"))
                row = ctypes.cast(api.ops[i].rows[0], ctypes.POINTER(kernel)).contents
                self.run[op] = ctypes.CFUNCTYPE(None, ptr, ptr, ptr)(row.run)
        self.multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
        self.word = torch.full((1,), -1, device=GPU, dtype=torch.int64)  # where a number out of range would be reported

    def call(self, name, keep=(), **args):
        """A function that queues the call on torch's stream."""
        args = ARGS[name](**args)
        context = Context(multiprocessors=self.multiprocessors, check=self.word.data_ptr(), early=True)
        status, run = Status(), self.run[name]

        def launch(keep=(args, keep)):
            context.stream = torch.cuda.current_stream().cuda_stream
            run(ctypes.addressof(status), ctypes.addressof(args), ctypes.addressof(context))
            if status.code:
                raise RuntimeError(status.text.decode())

        return launch


def tensor(t):
    if t is None:
        return Tensor(dtype=NONE)
    return Tensor(t.data_ptr(), (i64 * 5)(*t.shape), (i64 * 5)(*t.stride()), t.dim(), DTYPES[t.dtype], 1, 0)


ABSENT = tensor(None)


# ---- the calls -------------------------------------------------------------------------------------------------------


def quantize(lib, x, codes, scale, inverse=False):
    return lib.call("quantize", (x, codes, scale), floats=tensor(x), codes=tensor(codes), scale=tensor(scale), inverse=inverse)


def norm(lib, x, out, weight=None, bias=None, residual=None, residual_out=None, layer=False, eps=1e-5):
    return lib.call("norm", (x, out, weight, bias, residual, residual_out), x=tensor(x), weight=tensor(weight), bias=tensor(bias),
                    residual=tensor(residual), out=tensor(out), residual_out=tensor(residual_out), eps=eps, kind=int(layer))


def softmax(lib, x, out, scale=1.0, argmax=False):
    return lib.call("softmax", (x, out), x=tensor(x), targets=ABSENT, out=tensor(out), scale=scale, function=int(argmax))


def rope(lib, x, cos, sin, out, pairing=0):
    return lib.call("rope", (x, cos, sin, out), x=tensor(x), cos=tensor(cos), sin=tensor(sin), positions=ABSENT, out=tensor(out), pairing=pairing)


def elementwise(lib, a, b, out, function):
    return lib.call("elementwise", (a, b, out), a=tensor(a), b=tensor(b), out=tensor(out), function=function)


def embedding(lib, table, ids, out):
    return lib.call("embedding", (table, ids, out), table=tensor(table), ids=tensor(ids), out=tensor(out))


def block_of(form, tokens, dim):
    """kv_block of cache.h, head_dim_v = head_dim."""
    up = lambda x, to: (x + to - 1) // to * to
    row, codes = dim * BITS[form] // 8, BITS[form] < 16
    scales, zeros = up(2 * tokens, 16) * codes, up(2 * tokens, 16) * (form == "int4")
    v = up(tokens * row, 16)
    k_scale = v + up(tokens * row, 16)
    k_zero = k_scale + scales
    v_scale = k_zero + zeros
    v_zero = v_scale + scales
    return Block(0, v, k_scale, k_zero, v_scale, v_zero, up(v_zero + zeros, 128))


def append(lib, data, form, size, k, v, slots, cos=None, sin=None, positions=None, pairing=0):
    heads, dim = k.shape[1:]
    block, kind = block_of(form, size, dim), FORMATS.index
    cache = Cache(data.data_ptr(), 1, 0, kind(form), kind(form if BITS[form] > 8 else "bf16"), data.numel() // (heads * block.bytes), size, heads,
                  dim, dim, 0, 0, block, Block())
    return lib.call("kv", (data, k, v, slots, cos, sin, positions), op=0, cache=cache, k=tensor(k), v=tensor(v), slots=tensor(slots), to=ABSENT,
                    bytes=ABSENT, cos=tensor(cos), sin=tensor(sin), positions=tensor(positions), pairing=pairing)


# ---- the rules -------------------------------------------------------------------------------------------------------


def fp8_bits(q, kind):
    """f32_to_e4m3 and f32_to_e5m2 of csrc/base/dtype.h."""
    u = q.contiguous().view(torch.int32)
    sign, m = (u >> 24) & 0x80, u & 0x7FFFFFFF
    if kind == e4m3:
        normal = (m - 0x3C000000 + 0x7FFFF + ((m >> 20) & 1)) >> 20
        small = (m.view(f32) + 2.0**14).view(torch.int32) - 0x46800000
        r = torch.where(m < 0x3C800000, small, normal)
        r = torch.where(m >= 0x43E00000, 0x7E, r)
    else:
        normal = (m - 0x38000000 + 0xFFFFF + ((m >> 21) & 1)) >> 21
        small = (m.view(f32) + 2.0**7).view(torch.int32) - 0x43000000
        r = torch.where(m < 0x38800000, small, normal)
        r = torch.where(m >= 0x47600000, 0x7B, r)
    return (sign | torch.where(m > 0x7F800000, 0x7F, r)).to(torch.uint8)


def number(x):
    """A divisor as a tensor: torch multiplies by the reciprocal of one that is a number."""
    return torch.tensor(x, device=GPU, dtype=f32)


def quantized(x, kind):
    """Codes as bytes, and scales, of runs that are x's last dimension."""
    x = x.float()
    largest = x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    scale = torch.maximum(largest / number(LIMITS[kind]), number(1e-12))
    scale = torch.where(x.isfinite().all(-1), scale, float("nan"))
    q = x / scale[..., None]
    codes = torch.round(q.nan_to_num(0.0)).to(s8).view(torch.uint8) if kind == s8 else fp8_bits(q, kind)
    return torch.where(scale.isnan()[..., None], 0, codes), scale


def fused(a, b, c):
    """fma in f32: the product is exact in f64."""
    return (a.double() * b.double() + c.double()).float()


def turned(k, cos, sin, pairing):
    half = k.shape[-1] // 2
    x1, x2 = (k[..., :half], k[..., half:]) if pairing == 0 else (k[..., ::2], k[..., 1::2])
    cos, sin = cos[:, None], sin[:, None]
    first, second = fused(x1, cos, -(x2 * sin)), fused(x2, cos, x1 * sin)
    return torch.cat([first, second], -1) if pairing == 0 else torch.stack([first, second], -1).flatten(-2)


def encoded(x, form):
    """Bytes of codes, and scale and zero as f16, of f32 rows."""
    if BITS[form] > 8:
        return x.to({"f32": f32, "f16": f16, "bf16": bf16}[form]).view(torch.uint8), None, None
    good = x.isfinite().all(-1)
    low, high = x.amin(-1), x.amax(-1)
    low, high = torch.where(low < 0, low, 0.0), torch.where(high > 0, high, 0.0)
    largest = torch.maximum(-low, high)
    wanted = (high - low) / number(15.0) if form == "int4" else largest / number(127.0 if form == "int8" else 448.0)
    scale = wanted.clamp(max=65504.0).half()
    scale = torch.where(scale == 0, 2.0**-24, scale)
    inverse = number(1.0) / scale.float()
    zero = torch.minimum(-low / scale.float(), number(15.0)).half()
    if form == "int4":
        q = torch.round(fused(x, inverse[..., None], zero.float()[..., None]).nan_to_num(0.0).clamp(0.0, 15.0)).to(torch.uint8)
        half = x.shape[-1] // 2
        codes = q[..., :half] | q[..., half:] << 4
    elif form == "int8":
        codes = torch.round((x * inverse[..., None]).nan_to_num(0.0).clamp(-127.0, 127.0)).to(s8).view(torch.uint8)
    else:
        codes = fp8_bits(x * inverse[..., None], e4m3)
    codes = torch.where(good[..., None], codes, 0)
    bad = torch.tensor(0x7E00, device=GPU, dtype=torch.int16).view(f16)
    return codes, torch.where(good, scale, bad), torch.where(good, zero, 0.0)


def appended(data, form, size, k, v, slots):
    """What the cache holds after k (turned already) and v are written."""
    heads, dim = k.shape[1:]
    block, data = block_of(form, size, dim), data.clone()
    pages = data.view(-1, heads, block.bytes)
    here = slots >= 0
    page, place = (slots[here] // size).long(), (slots[here] % size).long()
    row = dim * BITS[form] // 8
    for x, at, scales, zeros in ((k, block.k, block.k_scale, block.k_zero), (v, block.v, block.v_scale, block.v_zero)):
        codes, scale, zero = encoded(x[here].float(), form)
        pages[..., at : at + size * row].unflatten(-1, (size, row))[page, :, place] = codes
        for numbers, first in ((scale, scales), (zero, zeros)):
            if numbers is not None and (form == "int4" or first != zeros):
                pages[..., first : first + 2 * size].unflatten(-1, (size, 2))[page, :, place] = numbers.contiguous().view(torch.uint8).unflatten(-1, (-1, 2))
    return data


# ---- checks ----------------------------------------------------------------------------------------------------------


def ulp(x, dtype):
    least, digits = {f32: (-126, 23), f16: (-14, 10), bf16: (-126, 7)}[dtype]
    return torch.exp2(torch.floor(torch.log2(x.abs().clamp(min=2.0**least))).clamp(min=least) - digits)


def is_near(got, want, loop):
    """The rule of test/ref/linear.ts: twice the error of a plain loop in f32, and two units in the last place of the output."""
    error = lambda x: torch.where(x.double() == want, 0.0, (x.double() - want).abs())
    of_loop = error(loop)
    bound = 2 * torch.where(of_loop < float("inf"), of_loop, 0.0).max() + 2 * ulp(want, got.dtype)
    rounded = want.to(got.dtype)
    same = (got == rounded) | (got.isnan() & rounded.isnan()) | (rounded.isfinite() & (error(got) <= bound))
    return bool(same.all())


class Check:
    def __init__(self, lib):
        self.lib, self.wrong, self.count = lib, 0, 0

    def that(self, right, name):
        self.count += 1
        if not right:
            self.wrong += 1
            print(f"WRONG {self.lib.name}: {name}", flush=True)

    def numbers(self, rows, columns, dtype, pad=0, spread=False):
        """Some rows of zeros, of NaN and of inf among them; a view where pad is not 0."""
        x = torch.randn(rows, columns + pad, device=GPU)
        if spread:
            x = x * torch.exp2(torch.randint(-60, 60, (rows, 1), device=GPU).float()) if dtype != f16 else x * torch.exp2(torch.randint(-12, 8, (rows, 1), device=GPU).float())
        x = x.to(dtype)[:, :columns]
        if rows > 6 and columns:
            x[2] = 0
            x[3, columns // 2] = float("nan")
            x[5, columns - 1] = -float("inf")
            x[4] *= -0.0 if columns == 1 else 1.0
        return x

    def quantize(self, rows, columns, dtype, kind, blocks, pad=0, spread=False):
        x = self.numbers(rows, columns, dtype, pad, spread)
        codes = torch.full((rows, columns + pad), 77, device=GPU, dtype=torch.uint8).view(kind)[:, :columns]
        runs = (columns + 127) // 128
        scale = torch.full((rows, runs) if blocks else (rows,), 7.0, device=GPU)
        quantize(self.lib, x, codes, scale)()
        if blocks:
            padded = torch.nn.functional.pad(x.float(), (0, runs * 128 - columns))
            want, factors = quantized(padded.unflatten(1, (runs, 128)), kind)
            want = want.flatten(1)[:, :columns]
        else:
            want, factors = quantized(x, kind)
        name = f"quantize {rows}x{columns} +{pad} {SHORT[dtype]} {SHORT[kind]} blocks={blocks} spread={spread}"
        got = codes.contiguous().view(torch.uint8)
        self.that(torch.equal(got, want), f"{name}: {int((got != want).sum())} codes")
        self.that(bool(((scale == factors) | (scale.isnan() & factors.isnan())).all()), f"{name}: scales")
        back = torch.zeros((rows, columns + pad), device=GPU, dtype=dtype)[:, :columns]
        codes = torch.randint(0, 256, (rows, columns + pad), device=GPU, dtype=torch.uint8).view(kind)[:, :columns]
        quantize(self.lib, back, codes, scale, True)()
        factors = factors.repeat_interleave(128, 1)[:, :columns] if blocks else factors[:, None]
        want = (codes.float() * factors).to(dtype)
        self.that(bool(((back == want) | (back.isnan() & want.isnan())).all()), f"de{name}")

    def norm(self, rows, columns, dtype, layer, residual, scale=1.0, pad=0, weights=f32):
        x = (self.numbers(rows, columns, f32 if dtype == f32 else dtype, pad).double() * scale).to(dtype)
        y = (torch.randn(rows, columns, device=GPU) * scale).to(dtype) if residual else None
        summed = torch.empty_like(x) if residual == 2 else None
        weight, bias = torch.randn(columns, device=GPU).to(weights), torch.randn(columns, device=GPU).to(weights)
        bias = bias if layer else None
        out = torch.zeros(rows, columns + pad, device=GPU, dtype=dtype)[:, :columns]
        norm(self.lib, x, out, weight, bias, y, summed, layer, 1e-5 if scale == 1.0 else 0.0)()
        u = x.float() + y.float() if residual else x.float()
        name = f"norm {rows}x{columns} +{pad} {SHORT[dtype]} layer={layer} residual={residual} scale={scale:g} weights={SHORT[weights]}"
        if residual == 2:
            u = u.to(dtype)
            self.that(bool(((summed == u) | (summed.isnan() & u.isnan())).all()), name + ": residual_out")
            u = u.float()
        want = []
        for real in (f32, torch.float64):
            w = (u.double() / scale).to(real)  # within the range of f32
            w = w - w.mean(1, keepdim=True) if layer else w
            v = w / torch.sqrt((w * w).mean(1, keepdim=True) + (1e-5 if scale == 1.0 else 0.0)) * weight.to(real)
            want.append(v + bias.to(real) if layer else v)
        self.that(is_near(out, want[1], want[0]), name)

    def softmax(self, rows, columns, dtype, scale, spread=1.0, pad=0):
        x = self.numbers(rows, columns, dtype, pad) * spread
        if rows > 8:
            x[7] = -float("inf")
            x[8, : columns // 2] = -float("inf")
        out = torch.empty(rows, columns, device=GPU, dtype=dtype)
        softmax(self.lib, x, out, scale)()
        scores = x.float() * scale
        want = torch.softmax(x.double() * number(scale).double(), 1)
        want = torch.where((scores == -float("inf")).all(1, keepdim=True), 0.0, want)
        loop = torch.softmax(scores, 1)
        loop = torch.where((scores == -float("inf")).all(1, keepdim=True), 0.0, loop)
        self.that(is_near(out, want, loop), f"softmax {rows}x{columns} +{pad} {SHORT[dtype]} scale={scale} spread={spread}")

    def argmax(self, rows, columns, dtype, pad=0):
        name = f"argmax {rows}x{columns} +{pad} {SHORT[dtype]}"
        for coarse in (False, True):
            x = self.numbers(rows, columns, dtype, pad)
            if coarse:  # many equal maxima, -0 and 0
                x = torch.round(x * 0.7).clamp(max=1.0) * (1.0 if columns % 3 else 0.0)
            out = torch.full((rows,), -7, device=GPU, dtype=torch.int32)
            softmax(self.lib, x, out, argmax=True)()
            key = torch.where(x.isnan(), float("inf"), torch.where(x == float("inf"), 3e38, x.double()))
            places = torch.arange(columns, device=GPU).expand_as(key)
            first = torch.where(key == key.amax(1, keepdim=True), places, columns).amin(1)
            self.that(bool((out == first).all()), f"{name} coarse={coarse}")

    def embedding(self, rows, columns, dtype, pad=0):
        table = torch.randn(57, columns + pad, device=GPU).to(dtype)[:, :columns]
        ids = torch.randint(0, 57, (rows,), device=GPU, dtype=torch.int32)
        out = torch.zeros(rows, columns, device=GPU, dtype=dtype)
        embedding(self.lib, table, ids, out)()
        self.that(torch.equal(out, table[ids.long()]), f"embedding {rows}x{columns} +{pad} {SHORT[dtype]}")

    def gates(self, count, dtype):
        a = torch.cat([torch.randn(count // 2, device=GPU) * 3, torch.linspace(-20, 20, count - count // 2, device=GPU)]).to(dtype)
        b = torch.randn(count, device=GPU).to(dtype)
        a[1], a[2], a[3] = float("nan"), float("inf"), -float("inf")
        for name, function in (("add", 0), ("mul", 1), ("siluMul", 2), ("geluMul", 3), ("geluTanhMul", 4)):
            out = torch.zeros(count, device=GPU, dtype=dtype)
            elementwise(self.lib, a, b, out, function)()
            of = {"add": lambda a, b: a + b, "mul": lambda a, b: a * b, "siluMul": lambda a, b: a / (1 + torch.exp(-a)) * b,
                  "geluMul": lambda a, b: a * torch.special.erfc(-a / 2**0.5) / 2 * b,
                  "geluTanhMul": lambda a, b: torch.nn.functional.gelu(a, approximate="tanh") * b}[name]
            self.that(is_near(out, of(a.double(), b.double()), of(a.float(), b.float())), f"{name} {count} {SHORT[dtype]}")

    def append(self, tokens, heads, dim, size, dtype, form, turns, pairing=0, spread=False, strided=False):
        slots = torch.randperm(tokens + 3 * size, device=GPU)[:tokens].int()
        if tokens > 4:
            slots[4] = -1
        both = torch.randn(tokens, 2 * heads + 1, dim, device=GPU)
        if spread:
            both = both * torch.exp2(torch.randint(-30, 20, (tokens, 2 * heads + 1, 1), device=GPU).float())
        both = both.to(dtype)
        if tokens > 8:
            both[3, 0, 1], both[5, heads, dim - 1], both[6, 1, 0], both[7] = float("nan"), float("inf"), -float("inf"), 0
            both[8] = both[8].abs()
        k, v = both[:, :heads], both[:, heads : 2 * heads]
        if not strided:
            k, v = k.contiguous(), v.contiguous()
        pages = (tokens + 3 * size + size - 1) // size
        data = torch.full((pages * heads * block_of(form, size, dim).bytes,), 0xA5, device=GPU, dtype=torch.uint8)
        cos = sin = positions = None
        key = k.float()
        if turns:
            angles = torch.rand(4 * tokens, dim // 2, device=GPU) * 6.28
            cos, sin = angles.cos(), angles.sin()
            positions = torch.randint(0, 4 * tokens, (tokens,), device=GPU, dtype=torch.int32)
            key = turned(key, cos[positions.long()], sin[positions.long()], pairing)
        want = appended(data, form, size, key, v.float(), slots)
        append(self.lib, data, form, size, k, v, slots, cos, sin, positions, pairing)()
        off = data != want
        if form == "f32":  # one NaN is as good as another
            off = (data.view(f32) != want.view(f32)) & ~(data.view(f32).isnan() & want.view(f32).isnan())
        off = int(off.sum())
        self.that(off == 0, f"append {tokens}x{heads}x{dim} page {size} {SHORT[dtype]} {form} turns={turns} pairing={pairing} spread={spread} strided={strided}: {off} bytes")


def run_checks(lib):
    c = Check(lib)
    lengths = (1, 7, 72, 128, 136, 520, 1024, 1152, 2880, 4096, 8192, 14336, 16384, 24576, 32768, 40000)
    for columns in lengths:
        for dtype in (f32, f16, bf16):
            for kind in (s8, e4m3, e5m2):
                c.quantize(19, columns, dtype, kind, False, spread=True)
                c.quantize(19, columns, dtype, kind, True, pad=columns % 16)
            for layer in (False, True):
                for residual in (0, 1, 2):
                    c.norm(19, columns, dtype, layer, residual, weights=bf16 if residual == 1 else f32)
            c.softmax(19, columns, dtype, 1.0)
            c.argmax(19, columns, dtype)
            c.embedding(19, columns, dtype, columns % 16)
        c.quantize(9, columns, bf16, e4m3, False, pad=8)
        for layer in (False, True):
            for scale in (1e-30, 1e-22, 1e18, 1e30):
                c.norm(19, columns, f32, layer, 0, scale)
                c.norm(19, columns, bf16, layer, 2, scale)
            c.norm(9, columns, bf16, layer, 0, pad=8, weights=f16)
        for dtype in (f32, bf16, f16):
            c.softmax(33, columns, dtype, 0.3, 100.0, pad=8)
            c.softmax(33, columns, dtype, -2.0)
    for dtype in (f32, bf16, f16):
        c.argmax(3, 128256, dtype)
        c.gates(4096, dtype)
        c.gates(100000, dtype)
        c.argmax(1001, 512, dtype, pad=8)
        for form in FORMATS:
            for turns in (False, True):
                c.append(37, 8, 128, 16, dtype, form, turns, spread=dtype != f16)
            c.append(37, 2, 64, 64, dtype, form, True, pairing=1, strided=True)
            c.append(11, 3, 256, 8, dtype, form, True, spread=dtype != f16, strided=True)
            c.append(11, 1, 80, 16, dtype, form, True)
            c.append(11, 1, 512, 256, dtype, form, True)
            c.append(9, 3, 48, 16, dtype, form, False)
    torch.cuda.synchronize()
    c.that(int(lib.word.item()) == -1, "a number was reported out of range")
    print(f"{lib.name}: {c.count - c.wrong} of {c.count} checks right", flush=True)
    return c.wrong


# ---- times -----------------------------------------------------------------------------------------------------------

COLD = 256 << 20  # bytes that a round of calls touches at least: five times the L2 cache


class Room:
    """Memory that calls share: places of it in turn."""

    def __init__(self):
        self.floats = {d: torch.randn((COLD * 2) // d.itemsize, device=GPU, dtype=f32 if d == f32 else d) for d in (f32, f16, bf16)}
        self.bytes = torch.randint(0, 256, (COLD * 2,), device=GPU, dtype=torch.uint8)
        self.out = torch.zeros(COLD * 2, device=GPU, dtype=torch.uint8)

    @staticmethod
    def part(pool, i, shape, dtype):
        size = dtype.itemsize
        for n in shape:
            size *= n
        step = (size + 255) // 256 * 256
        at = i * step % (pool.numel() * pool.element_size() - step + 1) // 256 * 256
        return pool.view(torch.uint8)[at : at + size].view(dtype).view(shape)

    def x(self, i, shape, dtype):
        return self.part(self.bytes if dtype.itemsize == 1 else self.floats[dtype], i, shape, dtype)

    def y(self, i, shape, dtype):
        return self.part(self.out, i, shape, dtype)


def cases(room):
    """(name, bytes, make(lib, i)): i counts calls, whose buffers are not those of their neighbours."""
    F = "bf16"
    million = 1 << 20
    shapes = {128: (131072, 128), 1024: (16384, 1024), 2880: (5824, 2880), 4096: (4096, 4096), 8192: (2048, 8192), 16384: (1024, 16384)}
    x, y = room.x, room.y
    big = lambda columns, dtype, size: (size * million // dtype.itemsize // columns, columns)

    def row(name, columns, dtype, size, width, make):
        shape = big(columns, dtype, size)
        yield f"{name} {columns} {SHORT[dtype]} {size} MB", int(shape[0] * columns * width), lambda lib, i: make(lib, i, shape)

    for columns, dtype, size in [(n, bf16, 32) for n in shapes] + [(4096, f32, 32), (4096, bf16, 128), (4096, f16, 32), (16384, f32, 32)]:
        weight, bias = torch.randn(columns, device=GPU), torch.randn(columns, device=GPU)
        w = dtype.itemsize
        yield from row("rmsNorm", columns, dtype, size, 2 * w, lambda lib, i, s, d=dtype, a=weight: norm(lib, x(i, s, d), y(i, s, d), a))
        yield from row("layerNorm", columns, dtype, size, 2 * w, lambda lib, i, s, d=dtype, a=weight, b=bias: norm(lib, x(i, s, d), y(i, s, d), a, b, layer=True))
        yield from row("rmsNorm+add", columns, dtype, size, 4 * w,
                       lambda lib, i, s, d=dtype, a=weight: norm(lib, x(2 * i, s, d), y(2 * i, s, d), a, None, x(2 * i + 1, s, d), y(2 * i + 1, s, d)))
        yield from row("softmax", columns, dtype, size, 2 * w, lambda lib, i, s, d=dtype: softmax(lib, x(i, s, d), y(i, s, d)))
        yield from row("argmax", columns, dtype, size, w, lambda lib, i, s, d=dtype: softmax(lib, x(i, s, d), y(i, s[:1], torch.int32), argmax=True))
    for columns, dtype, size in [(128256, bf16, 32), (128256, f32, 64)]:
        yield from row("argmax", columns, dtype, size, dtype.itemsize, lambda lib, i, s, d=dtype: softmax(lib, x(i, s, d), y(i, s[:1], torch.int32), argmax=True))
    for columns, dtype, size in [(n, bf16, 32) for n in shapes] + [(4096, f32, 32), (4096, bf16, 128)]:
        for kind in (s8, e4m3):
            for blocks in (False, True):
                width = dtype.itemsize + 1 + (4 / 128 if blocks else 4 / columns)
                runs = (columns + 127) // 128

                def make(lib, i, s, d=dtype, kind=kind, blocks=blocks, inverse=False, runs=runs):
                    scale = torch.empty((s[0], runs) if blocks else (s[0],), device=GPU)
                    return quantize(lib, x(i, s, d), y(i, s, kind), scale)

                def back(lib, i, s, d=dtype, kind=kind, blocks=blocks, runs=runs):
                    scale = torch.rand((s[0], runs) if blocks else (s[0],), device=GPU)
                    return quantize(lib, y(i, s, d), x(i, s, kind), scale, True)

                name = f"{SHORT[kind]}{' blocks' if blocks else ''}"
                if blocks and columns not in (2880, 4096, 8192):
                    continue
                yield from row(f"quantize {name}", columns, dtype, size, width, make)
                if columns == 4096:
                    yield from row(f"dequantize {name}", columns, dtype, size, width, back)
    for dtype in (bf16, f32):
        s = (32 * million // dtype.itemsize // 4096, 32, 128)
        angles = torch.rand(s[0], 64, device=GPU)
        yield f"rope {SHORT[dtype]} 32 MB", 64 * million + s[0] * 512, lambda lib, i, s=s, d=dtype, a=angles: rope(lib, x(i, s, d), a, a, y(i, s, d))
        flat = (32 * million // dtype.itemsize // 4096, 4096)
        for name, function in (("add", 0), ("siluMul", 2), ("geluMul", 3)):
            yield f"{name} {SHORT[dtype]} 32 MB", 96 * million, lambda lib, i, s=flat, d=dtype, f=function: elementwise(lib, x(2 * i, s, d), x(2 * i + 1, s, d), y(i, s, d), f)
        for columns in (1024, 4096):
            s = (32 * million // dtype.itemsize // columns, columns)
            ids = torch.randperm(s[0], device=GPU).int()
            yield f"embedding {columns} {SHORT[dtype]} 32 MB", 64 * million, lambda lib, i, s=s, d=dtype, ids=ids: embedding(lib, x(i, s, d), ids, y(i, s, d))
    for dtype, heads, dim, page, scattered in ((bf16, 8, 128, 64, False), (bf16, 8, 128, 16, True), (bf16, 8, 64, 64, False), (f16, 8, 256, 64, False), (f32, 8, 128, 64, False)):
        for form in ("bf16", "fp8_e4m3", "int8", "int4"):
            tokens = 32 * million // dtype.itemsize // (heads * dim)
            block = block_of(form, page, dim).bytes
            size = tokens // page * heads * block
            slots = torch.arange(tokens, device=GPU, dtype=torch.int32)
            if scattered:
                slots = (torch.randperm(tokens // page, device=GPU)[:, None] * page + torch.arange(page, device=GPU)).flatten().int()
            angles = torch.rand(8192, dim // 2, device=GPU)
            positions = torch.arange(tokens, device=GPU, dtype=torch.int32) % 8192
            numbers = BITS[form] / 8 + (4 / dim if form == "int4" else 2 / dim if BITS[form] == 8 else 0)
            total = tokens * heads * dim * 2 * (dtype.itemsize + numbers)

            def make(lib, i, form=form, page=page, s=(tokens, heads, dim), size=size, slots=slots, a=angles, p=positions, d=dtype):
                return append(lib, y(i, (size,), torch.uint8), form, page, x(2 * i, s, d), x(2 * i + 1, s, d), slots, a, a, p)

            yield f"append {heads}x{dim} page {page}{' scattered' if scattered else ''} {SHORT[dtype]} to {form} 64 MB in", int(total), make


def graph_of(calls):
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        calls[0]()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for call in calls:
                call()
    torch.cuda.synchronize()
    return graph


def by_turns(graphs, count, rounds):
    """Median us of a call."""
    times = {name: [] for name in graphs}
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for turn in range(rounds + 1):
        for name, graph in graphs.items():
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn:
                times[name].append(start.elapsed_time(end) * 1000 / count)
    return {name: statistics.median(t) for name, t in times.items()}


def copies(room, size):
    half = (size // 2 + 65535) // 65536 * 65536  # odd sizes are copied much slower
    return lambda i: (lambda a=room.x(i, (half,), torch.uint8), b=room.y(i, (half,), torch.uint8): b.copy_(a))


def main():
    root = os.path.join(HERE, "..", "..")
    parser = argparse.ArgumentParser()
    parser.add_argument("libraries", nargs="*", default=[os.path.join(root, "build", "Release", "liblowbit_cuda.so")])
    parser.add_argument("--save", help="append the lines to this file")
    parser.add_argument("--commit", help="what the library was built from, where that is not this tree")
    parser.add_argument("--check", action="store_true", help="nothing but the checks")
    parser.add_argument("--times", action="store_true", help="no checks")
    parser.add_argument("--only", help="cases whose name begins with one of these, with commas")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(1)
    libs = [Library(path) for path in options.libraries]
    wrong = 0 if options.times else sum(run_checks(lib) for lib in libs)
    if options.check:
        sys.exit(wrong > 0)
    commit = options.commit or subprocess.run(["git", "-C", root, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    origin = {"machine": torch.cuda.get_device_properties(0).name, "commit": commit, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    sink = open(options.save, "a") if options.save else None
    room = Room()
    for name, size, make in cases(room):
        if options.only and not name.startswith(tuple(options.only.split(","))):
            continue
        count = max(4, -(-COLD // size)) * 2
        copy = copies(room, size)
        graphs = {"copy": graph_of([copy(i) for i in range(count)])}
        for lib in libs:
            graphs[lib.name] = graph_of([make(lib, i) for i in range(count)])
        times = by_turns(graphs, count, options.rounds)
        graphs = None
        share = {lib.name: times["copy"] / times[lib.name] * 100 for lib in libs}
        print(f"{name:55} copy {times['copy']:6.1f} us {size / times['copy'] / 1e3:5.0f} GB/s" +
              "".join(f"  {n} {times[n]:6.1f} {share[n]:5.1f} %" for n in share), flush=True)
        if sink:
            for lib in libs:
                line = {"op": "rows", "case": name, "library": lib.name, "us": float(f"{times[lib.name]:.4g}"), "gbs": float(f"{size / times[lib.name] / 1e3:.4g}"),
                        "rivals": {"copy_": float(f"{times['copy']:.4g}")}, "ratio": float(f"{share[lib.name] / 100:.3g}")}
                print(json.dumps({**line, **origin}), file=sink, flush=True)


if __name__ == "__main__":
    main()
