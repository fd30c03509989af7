"""attention on a GPU against PyTorch's calls, in one process by one method: python3 torch_attention.py [LIBRARY].

decode: the rows of liblowbit_cuda.so over a paged cache, called as the addon calls them, through the structs of
csrc/attention/attention.h and cache.h, which are spelled out below and belong to one ABI number; the rivals are
scaled_dot_product_attention's backends on contiguous keys and values of the same sizes. First every option is checked against
float64 (--check alone stops there), then times are taken: a graph of calls over caches that together exceed the L2 cache several
times, rivals and own calls by turns, the median of the replays.

prefill: attention_bf16_sm90a and attention_f16_sm90a on tensors, checked in all options by the error rule of test/ref/compare.ts and
timed against the same backends on the same tensors.
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
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ABI = 6
i32, i64, u32, f4, ptr = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint32, ctypes.c_float, ctypes.c_void_p


def struct(name, *fields):
    return type(name, (ctypes.Structure,), {"_fields_": [(f, t) for t, names in fields for f in names.split()]})


Tensor = struct("Tensor", (ptr, "data"), (i64 * 5, "shape strides"), (i32, "rank dtype device_kind device_id"))
Block = struct("Block", (i64, "k v k_scale k_zero v_scale v_zero bytes"))
Cache = struct("Cache", (ptr, "data"), (i32, "device_kind device_id format prefix_format"),
               (i64, "pages page_size kv_heads head_dim head_dim_v prefix_rows prefix_tokens"), (Block, "page prefix"))
Args = struct("Args", (Tensor, "q k v o lse cu_seqlens_q cu_seqlens_kv kv_lens alibi_slopes sinks bias"), (Cache, "kv"),
              (Tensor, "page_table prefix_rows prefix_lens"), (f4, "softmax_scale softcap"), (i64, "window_left window_right"),
              (ctypes.c_bool, "causal"), (i32, "score"), (Tensor, "q_scales k_scales v_scales"))
Spec = struct("Spec", (u32, "dtypes"), (i64, "head_dim_max head_dim_multiple"), (u32, "paged"), (ctypes.c_bool, "bias tensors"))
Kernel = struct("Kernel", (ctypes.c_char_p, "name"), (u32, "arch"), (Spec, "spec"), (ptr, "workspace run"))
Context = struct("Context", (ptr, "pool scratch stream"), (i32, "multiprocessors"), (ptr, "check"), (ctypes.c_bool, "early"))
Status = struct("Status", (i32, "code"), (ctypes.c_char * 244, "text"))
Rows = struct("Rows", (ctypes.c_char_p, "op"), (ctypes.POINTER(ctypes.POINTER(Kernel)), "rows"), (i32, "count"))
Api = struct("Api", (i32, "abi runtime"), (ctypes.POINTER(Rows), "ops"), (i32, "op_count"), (ptr, "error_text device_count device_info use"))

bf16, f16, f32, e4m3 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
DTYPES = {f32: 0, f16: 1, bf16: 2, torch.int32: 3, e4m3: 6}
NONE = 9
FORMATS = ["f32", "f16", "bf16", "fp8_e4m3", "int8", "int4"]
BITS = {"f32": 32, "f16": 16, "bf16": 16, "fp8_e4m3": 8, "int8": 8, "int4": 4}
GPU = "cuda"
ROWS = "sm90a"  # whose rows: those of Hopper or, with sm80, of mma.sync


def decode_row(form):
    """The row that decodes over a cache of this format; codes are read by the row of bf16 queries."""
    kind = "f16" if form == "f16" else "bf16"
    return f"attention_decode_{kind}_sm90a" if ROWS == "sm90a" else f"attention_{kind}_{ROWS}"


def library(path):
    """The rows of attention, by name."""
    lib = ctypes.CDLL(path)
    lib.lowbit_cuda_api.restype = ctypes.POINTER(Api)
    api = lib.lowbit_cuda_api().contents
    if api.abi != ABI:
        sys.exit(f"{path} has ABI {api.abi}, this script knows {ABI}")
    ctypes.CFUNCTYPE(i32, i32)(api.use)(torch.cuda.current_device())
    ops = {api.ops[i].op.decode(): api.ops[i] for i in range(api.op_count)}
    rows = ops["attention"]
    return {rows.rows[i].contents.name.decode(): rows.rows[i].contents for i in range(rows.count)}


def tensor(t):
    if t is None:
        return Tensor(dtype=NONE)
    rank = t.dim()
    return Tensor(t.data_ptr(), (i64 * 5)(*t.shape), (i64 * 5)(*t.stride()), rank, DTYPES[t.dtype], 1, 0)


def caller(row, args, keep, early=True):
    """A function that queues the row's call on torch's stream."""
    context = Context(multiprocessors=torch.cuda.get_device_properties(0).multi_processor_count, early=early)
    scratch = None
    if row.workspace:
        size = ctypes.CFUNCTYPE(ctypes.c_size_t, ptr, i32)(row.workspace)(ctypes.addressof(args), 1)
        scratch = torch.randint(0, 256, (size,), device=GPU, dtype=torch.uint8)  # its contents are undefined
        context.scratch = scratch.data_ptr()
    word = torch.full((1,), -1, device=GPU, dtype=torch.int64)  # where a number out of range would be reported
    context.check = word.data_ptr()
    status = Status()
    run = ctypes.CFUNCTYPE(None, ptr, ptr, ptr)(row.run)

    def launch(keep=(args, keep, scratch)):
        context.stream = torch.cuda.current_stream().cuda_stream
        run(ctypes.addressof(status), ctypes.addressof(args), ctypes.addressof(context))
        if status.code:
            raise RuntimeError(status.text.decode())

    launch.scratch, launch.word = scratch, word
    return launch


# ---- paged caches ----------------------------------------------------------------------------------------------------


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


class Pages:
    """A cache of random numbers: bytes as cache.h has them."""

    def __init__(self, form, pages, size, heads, dim, prefix_rows=0, prefix_tokens=0):
        self.form, self.pages, self.size, self.heads, self.dim = form, pages, size, heads, dim
        self.prefix_rows, self.prefix_tokens = prefix_rows, prefix_tokens
        float_form = form if BITS[form] >= 16 else "bf16"
        self.block, self.prefix = block_of(form, size, dim), block_of(float_form, max(prefix_tokens, 1), dim)
        if prefix_rows == 0:
            self.prefix = Block()
        self.float_form = float_form
        body = pages * heads * self.block.bytes
        self.data = torch.empty(body + prefix_rows * heads * self.prefix.bytes, device=GPU, dtype=torch.uint8)
        self.paged = self.data[:body].view(pages, heads, self.block.bytes)
        self.row_bytes = dim * BITS[form] // 8
        self.fill(self.paged, self.block, size, form)
        if prefix_rows:
            self.fill(self.data[body:].view(prefix_rows, heads, self.prefix.bytes), self.prefix, prefix_tokens, float_form)

    @staticmethod
    def half(blocks, at, tokens):
        return blocks[..., at : at + 2 * tokens].view(f16)

    def fill(self, blocks, block, tokens, form):
        row = self.dim * BITS[form] // 8
        for part in range(0, blocks.shape[0], 512):
            some = blocks[part : part + 512]
            shape = (*some.shape[:2], 2 * tokens * row)
            if BITS[form] == 16:
                some[..., : shape[2]] = torch.randn(*shape[:2], shape[2] // 2, device=GPU).to(bf16 if form == "bf16" else f16).view(torch.uint8)
                continue
            codes = torch.randint(0, 256, shape, device=GPU, dtype=torch.uint8)
            if form == "fp8_e4m3":
                codes = torch.where(codes & 0x7F == 0x7F, codes & 0xF7, codes)
            some[..., : shape[2]] = codes
            most = {"fp8_e4m3": 150.0, "int8": 74.0, "int4": 4.6}[form]  # deviation of the codes
            for scale, zero in ((block.k_scale, block.k_zero), (block.v_scale, block.v_zero)):
                self.half(some, scale, tokens)[:] = ((torch.rand(*shape[:2], tokens, device=GPU) + 0.5) / most).half()
                if form == "int4":
                    self.half(some, zero, tokens)[:] = (torch.rand(*shape[:2], tokens, device=GPU) * 9 + 3).half()

    def struct(self):
        kind = FORMATS.index
        return Cache(self.data.data_ptr(), 1, 0, kind(self.form), kind(self.float_form), self.pages, self.size, self.heads, self.dim,
                     self.dim, self.prefix_rows, self.prefix_tokens, self.block, self.prefix)

    def values(self, blocks, block, tokens, form, of_values):
        """f64 [blocks, heads, tokens, dim]."""
        row, at = self.dim * BITS[form] // 8, block.v if of_values else block.k
        codes = blocks[..., at : at + tokens * row].contiguous()
        shape = (*blocks.shape[:2], tokens, -1)
        if BITS[form] == 16:
            return codes.view(bf16 if form == "bf16" else f16).double().view(shape)
        scale = self.half(blocks, block.v_scale if of_values else block.k_scale, tokens).double()[..., None]
        if form == "fp8_e4m3":
            return codes.view(torch.float8_e4m3fn).double().view(shape) * scale
        if form == "int8":
            return codes.view(torch.int8).double().view(shape) * scale
        zero = self.half(blocks, block.v_zero if of_values else block.k_zero, tokens).double()[..., None]
        codes = codes.view(shape)
        return (torch.cat([codes & 15, codes >> 4], -1).double() - zero) * scale

    def gather(self, pages, count, prefix_row=-1, prefix_len=0):
        """K and V of a sequence, f64 [heads, count, dim]."""
        both = []
        for of_values in (False, True):
            x = self.values(self.paged[pages.long()], self.block, self.size, self.form, of_values).transpose(0, 1).reshape(self.heads, -1, self.dim)[:, :count]
            if prefix_row >= 0:
                body = self.data[self.paged.numel() :].view(self.prefix_rows, self.heads, self.prefix.bytes)
                first = self.values(body[prefix_row : prefix_row + 1], self.prefix, self.prefix_tokens, self.float_form, of_values)[0]
                cut = min(prefix_len, count)
                x = torch.cat([first[:, :cut], x[:, cut:]], 1)
            both.append(x)
        return both

    def poison(self, pages, count):
        """NaN in what a sequence of `count` tokens has of its pages behind its last token."""
        for p, page in enumerate(pages.tolist()):
            first = max(0, count - p * self.size)
            if first >= self.size:
                continue
            for at in (self.block.k, self.block.v):
                self.paged[page, :, at + first * self.row_bytes : at + self.size * self.row_bytes] = 0xFF
            if BITS[self.form] == 8 or self.form == "int4":
                arrays = [self.block.k_scale, self.block.v_scale] + ([self.block.k_zero, self.block.v_zero] if self.form == "int4" else [])
                for at in arrays:
                    self.half(self.paged[page], at, self.size)[:, first:] = float("nan")


# ---- checks ----------------------------------------------------------------------------------------------------------


def reference(cache, table, lens, q, seqs, scale, causal=False, left=-1, right=-1, softcap=0.0, slopes=None, sinks=None, prefix_rows=None, prefix_lens=None):
    """o and lse, f64, of packed q [tokens, heads, dim] whose sequences have seqs tokens."""
    outs, lses, at = [], [], 0
    group = q.shape[1] // cache.heads
    for b, count in enumerate(seqs):
        n = lens[b]
        row = -1 if prefix_rows is None else prefix_rows[b]
        k, v = cache.gather(table[b], n, row, cache.prefix_tokens if prefix_lens is None else prefix_lens[b])
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        s = torch.einsum("thd,hjd->htj", q[at : at + count].double(), k) * scale
        if softcap:
            s = softcap * torch.tanh(s / softcap)
        i = torch.arange(count, device=GPU)[:, None] + n - count
        j = torch.arange(n, device=GPU)[None]
        if slopes is not None:
            s = s + slopes.double()[:, None, None] * (j - i)
        sees = torch.ones(count, n, device=GPU, dtype=torch.bool)
        if left >= 0:
            sees &= j >= i - left
        limit = 0 if causal else right
        if limit >= 0:
            sees &= j <= i + limit
        s = s.masked_fill(~sees, float("-inf"))
        everything = s
        if sinks is not None:
            everything = torch.cat([s, sinks.double()[:, None, None].expand(-1, count, 1)], 2)
        lse = torch.logsumexp(everything, 2) if everything.shape[2] else torch.full((q.shape[1], count), float("-inf"), device=GPU, dtype=torch.double)
        p = torch.exp(s - lse[..., None]).nan_to_num(0.0)
        outs.append(torch.einsum("htj,hjd->thd", p, v))
        lses.append(lse)
        at += count
    return torch.cat(outs), torch.cat(lses, 1)


def check(rows, form, dim=128, heads=32, kv_heads=8, size=64, lens=(1024,), seqs=None, batched=False, out=None, prefix=None, strided=False,
          slopes=False, sinks=False, scale=0.0, nan=True, early=True, **options):
    """Errors of a case: o's relative to its length, lse's largest; and whether a rerun has the same bits."""
    qtype = f16 if form == "f16" else bf16
    row = rows[decode_row(form)]
    lens, seqs = list(lens), list(seqs or [1] * len(lens))
    width = max(1, max((n + size - 1) // size for n in lens)) + 1
    rows_p, tokens_p, p_rows, p_lens = 0, 0, None, None
    if prefix:
        tokens_p, p_rows, p_lens = prefix
        rows_p = max(p_rows) + 1
    pages = len(lens) * width + 3
    cache = Pages(form, pages, size, kv_heads, dim, rows_p, tokens_p)
    table = torch.randperm(pages, device=GPU)[: len(lens) * width].view(len(lens), width).int()
    if nan:
        for b, n in enumerate(lens):
            cache.poison(table[b], n)
    tokens = sum(seqs)
    q = torch.randn(tokens, heads, dim, device=GPU).to(qtype)
    if strided:  # a part of fused q, k and v
        q = torch.randn(tokens, 3 * heads + 1, dim + 3, device=GPU).to(qtype)[:, heads : 2 * heads, 1 : 1 + dim]
    o = torch.full((tokens, heads, dim), float("nan"), device=GPU, dtype=out or qtype)
    lse = torch.full((heads, tokens), float("nan"), device=GPU)
    q_in, o_in, lse_in, cu = q, o, lse, None
    if batched:
        q_in, o_in = q.unflatten(0, (len(lens), -1)), o.unflatten(0, (len(lens), -1))
        lse_in = lse.view(heads, len(lens), -1).transpose(0, 1)
    else:
        cu = torch.tensor([0] + [sum(seqs[: i + 1]) for i in range(len(seqs))], device=GPU, dtype=torch.int32)
    number = lambda x: None if x is None else torch.tensor(x, device=GPU, dtype=torch.int32)
    kv_lens, pr, pl = number(lens), number(p_rows), number(p_lens)
    sl = torch.rand(heads, device=GPU) * 0.2 if slopes else None
    si = torch.randn(heads, device=GPU) if sinks else None
    absent = tensor(None)
    args = Args(q_scales=tensor(None), k_scales=tensor(None), v_scales=tensor(None), q=tensor(q_in), k=absent, v=absent, o=tensor(o_in), lse=tensor(lse_in), cu_seqlens_q=tensor(cu), cu_seqlens_kv=absent,
                kv_lens=tensor(kv_lens), alibi_slopes=tensor(sl), sinks=tensor(si), bias=absent, kv=cache.struct(), page_table=tensor(table),
                prefix_rows=tensor(pr), prefix_lens=tensor(pl), softmax_scale=scale, softcap=options.get("softcap", 0.0),
                window_left=options.get("left", -1), window_right=options.get("right", -1), causal=options.get("causal", False))
    launch = caller(row, args, (cache, table, q, o, lse, cu, kv_lens, pr, pl, sl, si), early)
    launch()
    torch.cuda.synchronize()
    first = o.clone(), lse.clone()
    o.fill_(float("nan"))
    if launch.scratch is not None:
        launch.scratch.random_(0, 256)
    launch()
    launch()
    torch.cuda.synchronize()
    same = all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(first, (o, lse)))
    if launch.word.item() != -1:
        raise RuntimeError(f"reported {launch.word.item():x}")
    want, want_lse = reference(cache, table, lens, q, seqs, scale or dim**-0.5, slopes=sl, sinks=si, prefix_rows=p_rows, prefix_lens=p_lens, **options)
    norm = want.norm().item()
    error = (o.double() - want).norm().item() / norm if norm else float((o != 0).any())
    finite = torch.isfinite(want_lse)
    lse_error = (lse.double() - want_lse)[finite].abs().max().item() if finite.any() else 0.0
    if not torch.equal(torch.isfinite(lse), finite):
        lse_error = float("inf")
    return error, lse_error, same


def checks(quick=False):
    """Name and arguments of each case; what is small, ragged and odd first."""
    lens = [1, 0, 7, 63, 64, 65, 130, 1000]
    for form in FORMATS[1:]:
        yield f"{form} ragged", dict(form=form, lens=lens)
        yield f"{form} D64 ragged", dict(form=form, dim=64, lens=lens)
        yield f"{form} one key", dict(form=form, lens=[1], out=f32)
        yield f"{form} 1x1024", dict(form=form, lens=[1024], nan=False)
        yield f"{form} 1x4100 out f32", dict(form=form, lens=[4100], out=f32)
        yield f"{form} page 8", dict(form=form, size=8, lens=lens)
        yield f"{form} page 16 D64", dict(form=form, size=16, dim=64, lens=lens)
        yield f"{form} page 128", dict(form=form, size=128, lens=lens)
        yield f"{form} page 256", dict(form=form, size=256, lens=lens + [2000])
        yield f"{form} page 32 batched", dict(form=form, size=32, lens=lens, batched=True)
        yield f"{form} MHA", dict(form=form, heads=3, kv_heads=3, lens=lens)
        yield f"{form} group 8", dict(form=form, heads=16, kv_heads=2, lens=lens)
        yield f"{form} group 16", dict(form=form, heads=32, kv_heads=2, lens=lens)
        yield f"{form} group 20", dict(form=form, heads=40, kv_heads=2, lens=lens)
        yield f"{form} causal, 1 to 9 queries", dict(form=form, lens=[9, 20, 64, 200, 700], seqs=[9, 3, 1, 5, 2], causal=True)
        yield f"{form} causal, 5 queries, batched", dict(form=form, lens=[9, 20, 64, 200, 700], seqs=[5] * 5, causal=True, batched=True)
        yield f"{form} more queries than keys", dict(form=form, lens=[3, 40], seqs=[9, 50], causal=True)
        yield f"{form} window", dict(form=form, lens=lens, left=100)
        yield f"{form} windows, 4 queries", dict(form=form, lens=[300, 77, 5], seqs=[4, 4, 4], left=33, right=2)
        yield f"{form} softcap, slopes, sinks", dict(form=form, lens=lens, softcap=20.0, slopes=True, sinks=True)
        yield f"{form} sinks", dict(form=form, lens=lens, sinks=True, out=f32)
        yield f"{form} scale -0.3", dict(form=form, lens=lens, scale=-0.3)
        yield f"{form} strided", dict(form=form, lens=lens, strided=True)
        yield f"{form} 150 sequences", dict(form=form, lens=[(37 * i) % 500 for i in range(150)])
        yield f"{form} 700 sequences", dict(form=form, heads=4, kv_heads=1, lens=[(37 * i) % 90 for i in range(700)])
        if form in ("f16", "bf16"):
            rows = [0, -1, 1, 1, 0, -1, 0, 1]
            yield f"{form} prefix", dict(form=form, lens=lens, prefix=(40, rows, [3, 0, 40, 7, 0, 5, 33, 40]))
            yield f"{form} prefix, causal", dict(form=form, lens=lens, seqs=[1, 2, 3, 1, 1, 5, 1, 1], causal=True, prefix=(40, rows, None))


def run_checks(rows, only=None, log=None):
    wrong, count, worst = 0, 0, {}
    for name, case in checks():
        if only and not name.startswith(only):
            continue
        count += 1
        try:
            error, lse_error, same = check(rows, **case)
        except Exception as fault:
            print(f"WRONG {name}: {str(fault).splitlines()[0]}", flush=True)
            wrong += 1
            if "CUDA error" in str(fault) or "illegal" in str(fault):
                break
            continue
        most = {"f16": 1.5e-3, "bf16": 6e-3}.get(case["form"], 6e-3)
        if case.get("out") == f32:
            most = {"f16": 1e-3, "bf16": 4e-3}.get(case["form"], 4e-3)
        good = error < most and lse_error < 2e-4 and same
        worst[case["form"]] = max(worst.get(case["form"], (0, 0)), (error, lse_error))
        if log:
            print(f"{'right' if good else 'WRONG'} {name}: o {error:.2e} lse {lse_error:.1e} {'same' if same else 'OTHER BITS'}", file=log, flush=True)
        if not good:
            wrong += 1
            if wrong <= 12:
                print(f"WRONG {name}: o off by {error:.2e}, lse by {lse_error:.1e}, {'same bits' if same else 'other bits on rerun'}", flush=True)
    print(f"decode: {count - wrong} of {count} cases right; largest errors " + ", ".join(f"{f} {a:.1e}" for f, (a, _) in worst.items()), flush=True)
    return wrong


# ---- times -----------------------------------------------------------------------------------------------------------

SHAPES = {"1x1024": (1, 1024), "1x8192": (1, 8192), "8x1024": (8, 1024), "1x32768": (1, 32768), "128x1024": (128, 1024),
          "32x8192": (32, 8192), "8x32768": (8, 32768), "128x8192": (128, 8192)}
HEADS, KV_HEADS, DIM, PAGE = 32, 8, 128, 64


def own_calls(row, form, batch, length, copies, early=True, page=PAGE):
    """Calls over `copies` caches, pages in no order, whose outputs stand at .o and inputs at .case."""
    qtype = f16 if form == "f16" else bf16
    width = length // page
    calls = []
    for _ in range(copies):
        cache = Pages(form, batch * width, page, KV_HEADS, DIM)
        table = torch.randperm(batch * width, device=GPU).view(batch, width).int()
        q = torch.randn(batch, HEADS, DIM, device=GPU).to(qtype)
        o = torch.empty_like(q)
        cu = torch.arange(batch + 1, device=GPU, dtype=torch.int32)
        lens = torch.full((batch,), length, device=GPU, dtype=torch.int32)
        absent = tensor(None)
        args = Args(q_scales=tensor(None), k_scales=tensor(None), v_scales=tensor(None), q=tensor(q), k=absent, v=absent, o=tensor(o), lse=absent, cu_seqlens_q=tensor(cu), cu_seqlens_kv=absent, kv_lens=tensor(lens),
                    alibi_slopes=absent, sinks=absent, bias=absent, kv=cache.struct(), page_table=tensor(table), prefix_rows=absent,
                    prefix_lens=absent, window_left=-1, window_right=-1)
        calls.append(caller(row, args, (cache, table, q, o, cu, lens), early))
    return calls


def rival_calls(backend, batch, length, copies):
    calls = []
    for _ in range(copies):
        q = torch.randn(batch, HEADS, 1, DIM, device=GPU, dtype=bf16)
        k, v = (torch.randn(batch, KV_HEADS, length, DIM, device=GPU, dtype=bf16) for _ in range(2))

        def call(q=q, k=k, v=v):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        calls.append(call)
    return calls


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
    graph.calls = calls  # and what they read
    return graph


def by_turns(graphs, count, replays=9):
    """Median us a call of each graph, replayed by turns."""
    times = {name: [] for name in graphs}
    for _ in range(replays):
        for name, graph in graphs.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            stop.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(stop) * 1e3 / count)
    return {name: statistics.median(t) for name, t in times.items()}


def cache_bytes(form, batch, length):
    return batch * (length // PAGE) * KV_HEADS * block_of(form, PAGE, DIM).bytes


def copies_for(size):
    """Caches that together are several times the L2 cache, and calls of a graph."""
    return max(2, min(40, -(-(400 << 20) // size)))


def decode_times(rows, shapes, forms, rivals=True, early=True):
    lines = []
    for shape in shapes:
        batch, length = SHAPES[shape]
        copies = copies_for(cache_bytes("bf16", batch, length))
        count = max(copies, 24) if batch * length <= 65536 else 2 * copies
        graphs = {}
        if rivals:
            for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
                try:
                    graphs[name] = graph_of(rival_calls(backend, batch, length, copies), count)
                except RuntimeError as fault:
                    print(f"{name} {shape}: {str(fault).splitlines()[0]}", file=sys.stderr)
        for form in forms:
            more = min(40, copies * 16 // BITS[form])
            graphs[form] = graph_of(own_calls(rows[decode_row(form)], form, batch, length, more, early), count)
        times = by_turns(graphs, count)
        graphs = None
        torch.cuda.empty_cache()
        best = min((times[n] for n in ("cuDNN", "flash") if n in times), default=float("nan"))
        for form in forms:
            size = cache_bytes(form, batch, length)
            lines.append({"op": "attention", "case": "decode", "format": form, "shape": shape, "us": times[form], "gbs": size / times[form] / 1e3,
                          "rivals": {n: times[n] for n in ("cuDNN", "flash") if n in times}, "ratio": best / times[form],
                          "of bf16": times.get("bf16", float("nan")) / times[form]})
        print(f"{shape:9}" + "".join(f" {n} {t:.1f}" for n, t in times.items()), flush=True)
    return lines


# ---- prefill ---------------------------------------------------------------------------------------------------------


def fp8_sums(q, k):
    """q k^T of codes as the tensor cores for fp8 add: 32 products at a time, 13 bits below the first bit of the largest term are kept."""
    s = torch.zeros(q.shape[0], q.shape[1], k.shape[1], device=GPU)
    for d in range(0, q.shape[2], 32):
        products = [q[:, :, e, None] * k[:, None, :, e] for e in range(d, min(d + 32, q.shape[2]))]
        largest = s.abs()
        for p in products:
            largest = torch.maximum(largest, p.abs())
        unit = torch.exp2(torch.floor(torch.log2(largest.clamp(min=2.0**-20))) - 13)
        s = sum((torch.trunc(p / unit) for p in products), torch.trunc(s / unit)) * unit
    return s


class Prefill:
    """Sequences of (queries, keys), packed or batched (the first one's number of queries is everyone's), and options."""

    def __init__(self, form="bf16", dim=128, dim_v=None, heads=4, kv_heads=2, seqs=((64, 64),), batched=False, out=None, placing="tokens",
                 causal=False, left=-1, right=-1, softcap=0.0, slopes=False, sinks=False, bias=None, sigmoid=False, scale=0.0, nan=(), room=0, page=0):
        self.type, self.nan = {"f16": f16, "fp8": e4m3}.get(form, bf16), nan
        fp8 = form == "fp8"
        self.row, self.form, self.page = f"attention_{form}_{ROWS}", form, page
        self.dim, self.dim_v, self.heads, self.kv_heads = dim, dim_v or dim, heads, kv_heads
        self.seqs = [(seqs[0][0], kv) for _, kv in seqs] if batched else list(seqs)
        self.batched, self.out, self.causal, self.left, self.right, self.softcap, self.sigmoid = batched, out or self.type, causal, left, right, softcap, sigmoid
        self.out = self.out if self.out != e4m3 else bf16
        self.scale_arg, self.scale = scale, scale or self.dim**-0.5
        self.room = max(kv for _, kv in self.seqs) + room if batched else 0
        tokens_q, tokens_kv = sum(n for n, _ in self.seqs), self.room * len(self.seqs) or sum(kv for _, kv in self.seqs)
        self.q, self.k, self.v = (self.make(n, h, d, placing) for n, h, d in ((tokens_q, heads, dim), (tokens_kv, kv_heads, dim), (tokens_kv, kv_heads, self.dim_v)))
        self.begins = []
        q0 = kv0 = 0
        for n, kv in self.seqs:
            self.begins.append((q0, kv0))
            if batched and self.room > kv:  # NaN behind the last key
                self.put_nan(self.k, slice(kv0 + kv, kv0 + self.room))
                self.put_nan(self.v, slice(kv0 + kv, kv0 + self.room))
            q0, kv0 = q0 + n, kv0 + (self.room or kv)
        for which, b, j in nan:
            self.put_nan(self.k if which == "k" else self.v, self.begins[b][1] + j)
        # Of tokens and heads of q, of heads of k, of v as a whole.
        some = lambda *shape: (torch.rand(*shape, device=GPU) + 0.5) * 0.01
        self.scales = [some(tokens_q, heads), some(1, kv_heads), some(1, 1)] if fp8 else [None] * 3
        self.o = self.make(tokens_q, heads, self.dim_v, placing, self.out).fill_(float("nan"))
        self.lse = None if sigmoid else torch.full((heads, tokens_q), float("nan"), device=GPU)
        self.slopes = torch.rand(heads, device=GPU) * 0.2 if slopes else None
        self.sinks = torch.randn(heads, device=GPU) if sinks else None
        self.bias = None
        if bias:  # "all": one for all heads
            columns = max(kv for _, kv in self.seqs) + 3
            h = 1 if bias == "all" else heads
            self.bias = torch.randn(*((len(self.seqs), h, self.seqs[0][0]) if batched else (h, tokens_q)), columns, device=GPU)

    @staticmethod
    def put_nan(x, at):
        if x.dtype == e4m3:
            x.view(torch.uint8)[at] = 0xFF
        else:
            x[at] = float("nan")

    def make(self, tokens, heads, dim, placing, dtype=None):
        dtype = dtype or self.type
        wide = lambda *shape: (torch.randn(*shape, device=GPU) * (100 if dtype == e4m3 else 1)).clamp(-448, 448).to(dtype)
        if placing == "heads":  # heads outside of tokens
            return wide(heads, tokens, dim).transpose(0, 1)
        if placing == "fused":  # a part of wider rows
            return wide(tokens, 2 * heads + 1, dim + 16)[:, heads : 2 * heads, 16 : 16 + dim]
        if placing == "odd":
            return wide(tokens, heads + 1, dim + 3)[:, 1:, 3 : 3 + dim]
        return wide(tokens, heads, dim)

    def cache(self):
        """The keys and values in a cache whose pages stand in no order, NaN where there is no token."""
        size, heads, block = self.page, self.kv_heads, block_of(self.form, self.page, self.dim)
        width = max(kv for _, kv in self.seqs) // size + 2
        cache = Pages(self.form, len(self.seqs) * width + 3, size, heads, self.dim)
        cache.data.fill_(0xFF)
        self.table = torch.randperm(cache.pages, device=GPU)[: len(self.seqs) * width].view(-1, width).int()
        for b, (_, kv) in enumerate(self.seqs):
            for p in range((kv + size - 1) // size):
                n = min(size, kv - p * size)
                for at, x in ((block.k, self.k), (block.v, self.v)):
                    part = x[self.begins[b][1] + p * size :][:n].transpose(0, 1).reshape(heads, -1).contiguous()
                    cache.paged[self.table[b, p], :, at : at + 2 * part.shape[1]] = part.view(torch.uint8).view(heads, -1)
        self.pages = cache
        return cache.struct()

    def args(self):
        batch = len(self.seqs)
        shaped = lambda x: x.unflatten(0, (batch, -1)) if self.batched else x
        number = lambda x: torch.tensor(x, device=GPU, dtype=torch.int32)
        ends = lambda of: number([0] + [sum(of(s) for s in self.seqs[: i + 1]) for i in range(batch)])
        one = not self.batched and batch == 1
        self.cu_q = None if self.batched or one else ends(lambda s: s[0])
        self.cu_kv = None if self.batched or one else ends(lambda s: s[1])
        self.kv_lens = number([kv for _, kv in self.seqs]) if self.batched and any(kv != self.room for _, kv in self.seqs) or self.page else None
        lse = self.lse.view(self.heads, batch, -1).transpose(0, 1) if self.batched and self.lse is not None else self.lse
        self.views = [shaped(x) for x in (self.q, self.k, self.v, self.o)] + [lse]
        absent = tensor(None)
        q, k, v, o, lse = (tensor(x) for x in self.views)
        cu_kv, paged = tensor(self.cu_kv), {}
        if self.page:
            k, v, cu_kv, paged = absent, absent, absent, {"kv": self.cache()}
        scales = [absent] * 3
        if self.scales[0] is not None:
            part = lambda x: x.unflatten(0, (batch, -1)) if x.shape[0] > 1 else x[None]
            self.given = [part(x) if self.batched else x for x in self.scales]
            scales = [tensor(x) for x in self.given]
        return Args(q_scales=scales[0], k_scales=scales[1], v_scales=scales[2], q=q, k=k, v=v, o=o, lse=lse, cu_seqlens_q=tensor(self.cu_q), cu_seqlens_kv=cu_kv, kv_lens=tensor(self.kv_lens),
                    alibi_slopes=tensor(self.slopes), sinks=tensor(self.sinks), bias=tensor(self.bias), prefix_rows=absent, prefix_lens=absent,
                    page_table=tensor(self.table) if self.page else absent, **paged, softmax_scale=self.scale_arg, softcap=self.softcap, window_left=self.left, window_right=self.right,
                    causal=self.causal, score=int(self.sigmoid))

    def reference(self, exact=True):
        """o [tokens, heads, dim_v] and lse [heads, tokens] in f64; not exact: by a plain loop in f32, weights in the dtype of q."""
        kind = torch.float64 if exact else f32
        o, lse = torch.zeros(self.o.shape, device=GPU, dtype=kind), torch.zeros(self.heads, self.o.shape[0], device=GPU, dtype=kind)
        group = self.heads // self.kv_heads
        for b, (n, kv) in enumerate(self.seqs):
            if n == 0:
                continue
            q0, kv0 = self.begins[b]
            rows = slice(q0, q0 + n)
            q = self.q[rows].to(kind).transpose(0, 1)
            k, v = (x[kv0 : kv0 + kv].to(kind) for x in (self.k, self.v))
            of = None
            k, v = (x.transpose(0, 1).repeat_interleave(group, 0) for x in (k, v))
            if self.scales[0] is not None:
                of_q, of_k, of_v = (x.to(kind) for x in self.scales)
                of = of_q[rows].t()[..., None] * of_k.t().repeat_interleave(group, 0)[:, None]
                v = v * of_v
            if exact:
                s = q @ k.transpose(1, 2) * (self.scale if of is None else self.scale * of)
            elif of is not None:
                s = fp8_sums(q, k) * of * self.scale
            else:
                s = torch.zeros(self.heads, n, kv, device=GPU)
                for d in range(self.dim):
                    s = s + q[:, :, d, None] * k[:, None, :, d]
                s = s * self.scale
            i, j = torch.arange(n, device=GPU)[:, None] + kv - n, torch.arange(kv, device=GPU)[None]
            if self.softcap:
                s = self.softcap * torch.tanh(s / self.softcap)
            if self.slopes is not None:
                s = s + self.slopes.to(kind)[:, None, None] * (j - i)
            if self.bias is not None:
                s = s + (self.bias[b] if self.batched else self.bias[:, rows])[..., :kv].to(kind)
            sees = torch.ones(n, kv, device=GPU, dtype=torch.bool)
            if self.left >= 0:
                sees &= j >= i - self.left
            limit = 0 if self.causal else self.right
            if limit >= 0:
                sees &= j <= i + limit
            s = s.masked_fill(~sees, float("-inf"))
            own = (self.sinks if self.sinks is not None else torch.full((self.heads,), float("-inf"), device=GPU)).to(kind)[:, None]
            top = torch.maximum(s.amax(2), own) if kv else own.expand(-1, n).clone()
            shift = torch.where(top == float("-inf"), 0.0, top)
            p = torch.sigmoid(s) if self.sigmoid else torch.exp(s - shift[..., None])
            own = torch.exp(own - shift)
            clean = v.nan_to_num(0.0)
            if exact:
                total = own + p.sum(2)
                acc, sum_p = p @ clean, total
            else:
                w = (p * 256).to(self.type).to(f32) / 256 if self.type == e4m3 else p.to(self.type).to(f32)
                sum_p, total, acc = own.clone(), own.clone(), torch.zeros(self.heads, n, self.dim_v, device=GPU)
                for x in range(kv):
                    sum_p, total = sum_p + p[:, :, x], total + w[:, :, x]
                    acc = acc + w[:, :, x, None] * clean[:, x, None]
            acc = acc if self.sigmoid else acc / total[..., None]
            acc = torch.where((sees.to(f32) @ v.isnan().to(f32)) > 0, float("nan"), acc)
            empty = ~sees.any(1)
            o[rows] = torch.where(empty[None, :, None], 0.0, acc).transpose(0, 1)
            lse[:, rows] = torch.where(empty[None], top, shift + torch.log(sum_p))
        return o, lse


def ulp(dtype, x):
    digits, least = {f32: (23, -126), f16: (10, -14), bf16: (7, -126)}[dtype]
    return torch.exp2(torch.floor(torch.log2(x.abs().clamp(min=2.0**least))) - digits)


def beyond(got, want, plain, dtype):
    """The error over what test/ref/compare.ts allows: twice that of the plain loop and two units in the last place. inf: no number where there is one."""
    both = torch.isnan(got) & torch.isnan(want) | (got.double() == want)
    if bool((torch.isnan(got) != torch.isnan(want)).any()):
        return float("inf")
    off = (plain.to(dtype).double() - want).abs()
    worst = off[torch.isfinite(off)].max() if torch.isfinite(off).any() else 0.0
    ratio = (got.double() - want).abs() / (2 * worst + 2 * ulp(dtype, want))
    ratio = torch.where(both, 0.0, ratio).nan_to_num(float("inf"))
    return ratio.max().item() if ratio.numel() else 0.0


def check_prefill(rows, **options):
    case = Prefill(**options)
    args = case.args()
    passing = f"attention_decode_{case.form}_sm90a"  # a row that hands many queries on
    launch = caller(rows[passing if case.page and ROWS == "sm90a" and passing in rows else case.row], args, case)
    launch()
    torch.cuda.synchronize()
    outs = [x for x in (case.o, case.lse) if x is not None]
    first = [x.clone() for x in outs]
    for x in outs:
        x.fill_(float("nan"))
    if launch.scratch is not None:
        launch.scratch.random_(0, 256)
    launch()
    launch()
    torch.cuda.synchronize()
    same = all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(first, outs))
    if launch.word.item() != -1:
        raise RuntimeError(f"reported {launch.word.item():x}")
    want, want_lse = case.reference()
    plain, plain_lse = case.reference(False)
    if case.nan and not case.page:  # rows that don't see it have the bits that they have without it
        got = [x.clone() for x in outs]
        for which, b, j in case.nan:
            (case.k if which == "k" else case.v)[case.begins[b][1] + j] = 1.0
        launch()
        torch.cuda.synchronize()
        others = ~torch.isnan(want).any(-1)
        same = same and torch.equal(got[0][others], case.o[others])
        for x, before in zip(outs, got):
            x.copy_(before)
    return beyond(case.o, want, plain, case.out), 0.0 if case.lse is None else beyond(case.lse, want_lse, plain_lse, f32), same


def prefill_checks():
    edges = [(1, 1), (2, 2), (63, 63), (64, 64), (65, 65), (127, 128), (129, 129), (0, 40), (3, 200), (200, 3), (300, 300)]
    for form in ("bf16", "f16", "fp8"):
        for dim in (64, 128) if form == "fp8" else (64, 128, 256):
            yield f"{form} D{dim}", dict(form=form, dim=dim, seqs=edges)
            yield f"{form} D{dim} causal", dict(form=form, dim=dim, seqs=edges, causal=True)
            yield f"{form} D{dim} causal out f32", dict(form=form, dim=dim, seqs=edges, causal=True, out=f32)
            yield f"{form} D{dim} batched", dict(form=form, dim=dim, seqs=[(300, 300)] * 3, batched=True)
            yield f"{form} D{dim} batched, lengths, NaN behind", dict(form=form, dim=dim, seqs=[(150, n) for n in (300, 1, 0, 129, 256)], batched=True, causal=True, room=9)
            yield f"{form} D{dim} one sequence, more items than blocks", dict(form=form, dim=dim, heads=80, kv_heads=10, seqs=[(260, 390)], causal=True)
            yield f"{form} D{dim} window", dict(form=form, dim=dim, seqs=edges, left=100, causal=True)
            yield f"{form} D{dim} windows", dict(form=form, dim=dim, seqs=edges, left=33, right=70, sinks=True)
            yield f"{form} D{dim} sinks", dict(form=form, dim=dim, seqs=edges, sinks=True, causal=True)
            yield f"{form} D{dim} softcap", dict(form=form, dim=dim, seqs=edges, softcap=20.0, causal=True)
            yield f"{form} D{dim} slopes", dict(form=form, dim=dim, seqs=edges, slopes=True, causal=True, sinks=True)
            yield f"{form} D{dim} sigmoid", dict(form=form, dim=dim, seqs=edges, sigmoid=True, causal=True)
            yield f"{form} D{dim} bias", dict(form=form, dim=dim, seqs=edges, bias="each", causal=True)
            yield f"{form} D{dim} bias of all, batched", dict(form=form, dim=dim, seqs=[(130, 150), (130, 40)], bias="all", batched=True, slopes=True, softcap=30.0)
            yield f"{form} D{dim} scale -0.3", dict(form=form, dim=dim, seqs=edges, scale=-0.3)
            yield f"{form} D{dim} scale 0.4", dict(form=form, dim=dim, seqs=edges, scale=0.4, causal=True)
            yield f"{form} D{dim} heads outside", dict(form=form, dim=dim, seqs=[(200, 300), (200, 170)], batched=True, placing="heads", causal=True)
            yield f"{form} D{dim} fused", dict(form=form, dim=dim, seqs=edges, placing="fused", causal=True)
            yield f"{form} D{dim} NaN in a value and a key", dict(form=form, dim=dim, seqs=[(300, 300), (70, 100)], causal=True, nan=[("v", 0, 140), ("k", 0, 250), ("v", 1, 80)])
            yield f"{form} D{dim} NaN and window", dict(form=form, dim=dim, seqs=[(300, 400)], left=50, right=60, nan=[("v", 0, 140), ("k", 0, 33)], softcap=15.0)
            if form == "fp8":
                continue
            for size in (8, 64, 256):
                yield f"{form} D{dim} pages of {size}", dict(form=form, dim=dim, seqs=edges + [(130, 700)], causal=True, page=size)
            yield f"{form} D{dim} pages, batched, window, NaN", dict(form=form, dim=dim, seqs=[(150, n) for n in (300, 1, 0, 129)], batched=True, left=70, right=20, page=32, nan=[("v", 0, 200)])
        yield f"{form} odd strides", dict(form=form, seqs=edges, placing="odd", causal=True)
        for dim, dim_v in ((96, 96), (192, 192), (192, 128), (40, 24), (64, 128), (128, 64), (8, 8), (80, 256)):
            yield f"{form} D{dim}/{dim_v}", dict(form=form, dim=dim, dim_v=dim_v, seqs=edges, causal=True)
        yield f"{form} 90 sequences", dict(form=form, heads=2, kv_heads=1, seqs=[((37 * i) % 150, (53 * i) % 170) for i in range(90)], causal=True)
        yield f"{form} MQA", dict(form=form, heads=7, kv_heads=1, seqs=edges, causal=True)


def run_prefill_checks(rows, only=None, log=None):
    wrong, count, worst = 0, 0, [0.0, 0.0]
    for name, case in prefill_checks():
        if f"attention_{case['form']}_{ROWS}" not in rows or only and not name.startswith(only):
            continue
        count += 1
        try:
            error, lse_error, same = check_prefill(rows, **case)
        except Exception as fault:
            print(f"WRONG {name}: {str(fault).splitlines()[0]}", flush=True)
            wrong += 1
            if "CUDA error" in str(fault) or "illegal" in str(fault):
                break
            continue
        good = error <= 1 and lse_error <= 1 and same
        worst = [max(worst[0], error), max(worst[1], lse_error)]
        text = f"{'right' if good else 'WRONG'} {name}: o {error:.2f}, lse {lse_error:.2f} of what is allowed, {'same' if same else 'OTHER'} bits"
        if log:
            print(text, file=log, flush=True)
        if not good:
            wrong += 1
            if wrong <= 12:
                print(text, flush=True)
    print(f"prefill: {count - wrong} of {count} cases right; at most {worst[0]:.2f} (o) and {worst[1]:.2f} (lse) of what is allowed", flush=True)
    return wrong


# Batch, heads, kv_heads, length, head_dim, causal: those of a sweep with 16384 tokens.
PREFILL = {f"d{d}-{'causal' if causal else 'full'}-{s}": (max(1, 16384 // s), h, h, s, d, causal)
           for d, h in ((128, 16), (64, 32), (256, 8)) for causal in (False, True) for s in (512, 1024, 2048, 4096, 8192, 16384)}
PREFILL |= {f"gqa-causal-{s}": (max(1, 16384 // s), 32, 8, s, 128, True) for s in (1024, 4096, 8192)}


def prefill_graphs(rows, shape, form="bf16", tokens_outside=False, flash=True):
    batch, heads, kv_heads, length, dim, causal = PREFILL[shape]
    dtype = f16 if form == "f16" else bf16

    def make(h):
        if tokens_outside:
            return torch.randn(batch, length, h, dim, device=GPU).to(dtype)
        return torch.randn(batch, h, length, dim, device=GPU).to(dtype).transpose(1, 2)
    q, k, v = make(heads), make(kv_heads), make(kv_heads)
    o = torch.empty_like(q)
    absent = tensor(None)
    args = Args(q_scales=tensor(None), k_scales=tensor(None), v_scales=tensor(None), q=tensor(q), k=tensor(k), v=tensor(v), o=tensor(o), lse=absent, cu_seqlens_q=absent, cu_seqlens_kv=absent, kv_lens=absent,
                alibi_slopes=absent, sinks=absent, bias=absent, page_table=absent, prefix_rows=absent, prefix_lens=absent, window_left=-1,
                window_right=-1, causal=causal)
    flops = 4 * batch * heads * length * length * dim * (0.5 if causal else 1)
    count = max(3, min(40, int(4e-3 / (flops / 6e14))))
    graphs = {}
    for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION))[: 2 if flash else 1]:
        def call(backend=backend):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal, enable_gqa=kv_heads != heads)
        try:
            graphs[name] = graph_of([call], count)
        except RuntimeError as fault:
            print(f"{name} {shape}: {str(fault).splitlines()[0]}", file=sys.stderr)
    for name, some in rows.items():
        graphs[name] = graph_of([caller(some[f"attention_{form}_{ROWS}"], args, (q, k, v, o))], count)
    return graphs, count, flops


def prefill_times(rows, shapes, form="bf16", tokens_outside=False, flash=True, replays=9):
    """`rows`: of libraries, by name."""
    lines = []
    for shape in shapes:
        graphs, count, flops = prefill_graphs(rows, shape, form, tokens_outside, flash)
        times = by_turns(graphs, count, replays)
        graphs = None
        torch.cuda.empty_cache()
        rivals = {n: times[n] for n in ("cuDNN", "flash") if n in times}
        for name in rows:
            lines.append({"op": "attention", "case": "prefill", "format": form, "shape": shape, "us": times[name], "tflops": flops / times[name] / 1e6,
                          "rivals": rivals, "ratio": min(rivals.values(), default=float("nan")) / times[name]})
        print(f"{shape:18}" + "".join(f" {n} {t:.1f}" for n, t in times.items()) + " |" +
              "".join(f" {times['cuDNN'] / times[n]:.3f} ({flops / times[n] / 1e6:.0f})" for n in rows if "cuDNN" in times), flush=True)
    return lines


def main():
    global ROWS, DIM
    root = os.path.join(HERE, "..", "..")
    parser = argparse.ArgumentParser()
    parser.add_argument("library", nargs="?", default=os.path.join(root, "build", "Release", "liblowbit_cuda.so"))
    parser.add_argument("--part", default="decode,prefill", help="only these, with commas")
    parser.add_argument("--rows", default=ROWS, choices=["sm90a", "sm80"], help="which rows")
    parser.add_argument("--dim", type=int, default=DIM, help="head dim of decode's times")
    parser.add_argument("--save", help="append the lines to this file")
    parser.add_argument("--commit", help="what the library was built from, where that is not this tree")
    parser.add_argument("--check", action="store_true", help="nothing but the checks")
    parser.add_argument("--only", help="checks whose name begins so")
    parser.add_argument("--log", help="a line for each check in this file")
    parser.add_argument("--shape", help="only these, with commas")
    parser.add_argument("--format", default="bf16,fp8_e4m3,int8,int4", help="only these, with commas")
    options = parser.parse_args()
    ROWS, DIM = options.rows, options.dim
    torch.manual_seed(1)
    rows = library(options.library)
    log = open(options.log, "w") if options.log else None
    parts = options.part.split(",")
    wrong = run_checks(rows, options.only, log) if "decode" in parts else 0
    if "prefill" in parts:
        wrong += run_prefill_checks(rows, options.only, log)
    if options.check:
        sys.exit(wrong > 0)
    commit = options.commit or subprocess.run(["git", "-C", root, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    origin = {"machine": torch.cuda.get_device_properties(0).name, "commit": commit, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    sink = open(options.save, "a") if options.save else None
    shapes = options.shape.split(",") if options.shape else [*SHAPES, *PREFILL]
    lines = decode_times(rows, [s for s in shapes if s in SHAPES], options.format.split(",")) if "decode" in parts else []
    if "prefill" in parts:
        lines += prefill_times({"lowbit": rows}, [s for s in shapes if s in PREFILL])
    for line in lines:
        rounded = {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in line.items()}
        rounded["rivals"] = {key: float(f"{v:.4g}") for key, v in line["rivals"].items()}
        if sink:
            print(json.dumps({**rounded, **origin}), file=sink, flush=True)


if __name__ == "__main__":
    main()
