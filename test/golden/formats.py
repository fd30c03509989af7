#!/usr/bin/env python3
"""Makes formats.json: weights and what nf4, fp4, the OCP MX formats and nvfp4 make of them.

Elements and scales are rounded and decoded by ml_dtypes (float8_e4m3fn, float8_e5m2, float6_e2m3fn, float6_e3m2fn,
float4_e2m1fn, float8_e8m0fnu), all else is numpy in float32. The table of nf4 is the one that QLoRA prints (appendix E),
and beside it the quantiles of the normal distribution that it comes from; fp4 has the numbers of bitsandbytes.
Usage: python3 formats.py > formats.json
"""
import base64, json
from statistics import NormalDist
import ml_dtypes
import numpy as np

N, K = 5, 200                     # six groups of 32 and one of 8
f32 = np.float32
rng = np.random.default_rng(20261125)
w = (rng.standard_normal((N, K)) * 0.05).astype(f32)
w[0, 17] = 1.5                    # an outlier
w[1, 64:128] = 0                  # groups of zeros
w[1, 70] = -0.0
w[2] *= f32(2.0 ** -140)          # subnormal numbers
w[3] = rng.integers(-12, 13, K) / f32(4)  # ties
w[4, :64] *= f32(2.0 ** 120)


def pack(a, dtype):
    return base64.b64encode(np.ascontiguousarray(a, dtype=dtype).tobytes()).decode()


def groups(v, g):
    """Rows of groups; the ragged last one is filled with zeros, which change no maximum."""
    padded = np.zeros((N, -(-K // g) * g), f32)
    padded[:, :K] = v
    return padded.reshape(N, -1, g)


def flat(v):
    return v.reshape(N, -1)[:, :K]


def case(fmt, g, codes, scales, values, tensor_scale=None):
    return {"format": fmt, "group": g, "codes": pack(flat(codes), np.uint8), "scales": pack(scales, "<f4"),
            "values": pack(flat(values), "<f4"), **({} if tensor_scale is None else {"tensorScale": float(tensor_scale)})}


def mx(fmt, element):
    v = groups(w, 32)
    largest = np.abs(v).max(2, keepdims=True).astype(np.float64)
    top = 127 / 64 if element is None else float(ml_dtypes.finfo(element).max)
    emax = int(np.floor(np.log2(top)))
    exponent = np.where(largest == 0, -127, np.frexp(largest)[1] - 1 - emax)
    scale = np.exp2(np.clip(exponent, -127, 127).astype(np.float64))
    assert np.all(scale.astype(ml_dtypes.float8_e8m0fnu).astype(np.float64) == scale)
    t = np.clip(v / scale, -top, top)
    if element is None:
        q = np.round(t * 64).astype(np.int8)
        codes, decoded = q.view(np.uint8), q / 64
    else:
        q = t.astype(element)
        codes, decoded = q.view(np.uint8), q.astype(np.float64)
    return case(fmt, 32, codes, scale, (scale * decoded).astype(f32))


def nvfp4():
    v = groups(w, 16)
    tensor = np.maximum(np.abs(w).max() / f32(2688), f32(1e-12))
    scale = (np.abs(v).max(2, keepdims=True) / f32(6) / tensor).astype(ml_dtypes.float8_e4m3fn).astype(f32)
    scale = np.maximum(scale, f32(2.0 ** -9))
    q = np.clip(v / (scale * tensor), -6, 6).astype(ml_dtypes.float4_e2m1fn)
    return case("nvfp4", 16, q.view(np.uint8), scale, tensor * (scale * q.astype(f32)), tensor)


def table(fmt, numbers, g):
    t = np.asarray(numbers, f32)
    v = groups(w, g)
    scale = np.maximum(np.abs(v).max(2, keepdims=True) / np.abs(t).max(), f32(1e-12))
    far = np.abs((v / scale)[..., None].astype(np.float64) - t.astype(np.float64))
    order = np.argsort(t, kind="stable")
    codes = order[np.argmin(far[..., order], 3)]  # the first, so the lowest, of equally near ones
    return case(fmt, g, codes, scale, scale * t[codes])


def quantiles():
    """bitsandbytes' create_normal_map with offset 0.9677083 ((1 - 1/30 + 1 - 1/32) / 2)."""
    at = NormalDist().inv_cdf
    positive = [at(p) for p in np.linspace(0.9677083, 0.5, 9)[:-1]]
    negative = [-at(p) for p in np.linspace(0.9677083, 0.5, 8)[:-1]]
    numbers = sorted(positive + [0.0] + negative)
    return [x / numbers[-1] for x in numbers]


nf4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
fp4 = [x / 12 for x in (0, 0.0625, 8, 12, 4, 6, 2, 3)]
print(json.dumps({
    "shape": [N, K],
    "weights": pack(w, "<f4"),
    "quantiles": quantiles(),
    "cases": [
        table("nf4", nf4, 64), table("nf4", nf4, K),
        table("fp4", fp4 + [-x for x in fp4], 32),
        mx("mxfp8_e4m3", ml_dtypes.float8_e4m3fn), mx("mxfp8_e5m2", ml_dtypes.float8_e5m2),
        mx("mxfp6_e2m3", ml_dtypes.float6_e2m3fn), mx("mxfp6_e3m2", ml_dtypes.float6_e3m2fn),
        mx("mxfp4", ml_dtypes.float4_e2m1fn), mx("mxint8", None), nvfp4(),
    ],
}, indent=0))
