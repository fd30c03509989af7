#!/usr/bin/env python3
"""Makes quantize.json: weights and what the round-to-nearest schemes make of them, computed with numpy in float32.

The schemes are written as one would in numpy (or, operation for operation, in PyTorch), apart from FP8, whose rounding
is done in exact fractions. Usage: python3 quantize.py > quantize.json
"""
import base64, json
from fractions import Fraction
import numpy as np

N, K = 5, 256
f32 = np.float32
rng = np.random.default_rng(20261122)
w = (rng.standard_normal((N, K)) * 0.05).astype(f32)
w[0, 17] = 1.5                    # an outlier
w[1, 64:128] = 0                  # a group of zeros
w[2] = np.abs(w[2])               # all positive
w[3, :64] = -np.abs(w[3, :64])    # a negative group
w[4, ::2] = w[4, 0]               # ties


def pack(a, dtype):
    return base64.b64encode(np.ascontiguousarray(a, dtype=dtype).tobytes()).decode()


def groups(g):
    return w.reshape(N, -1, g)


def case(fmt, g, codes, scales, zeros, mode):
    return {"format": fmt, "group": g, "mode": mode, "codes": pack(codes.reshape(N, K), np.uint8),
            "scales": pack(scales.reshape(N, -1), "<f4"), "zeros": pack(zeros.reshape(N, -1), "<f4")}


def signed(fmt, g, top, mid):
    v = groups(g)
    s = np.maximum(np.abs(v).max(2, keepdims=True) / f32(top), f32(1e-12))
    q = np.clip(np.round(v / s), -top, top) + mid
    return case(fmt, g, q.astype(np.int64) & 255, s, np.full_like(s, mid), "symmetric")


def affine(fmt, bits, g, mode):
    v, top = groups(g), 2 ** bits - 1
    lo = np.minimum(v.min(2, keepdims=True), f32(0))
    hi = np.maximum(v.max(2, keepdims=True), f32(0))
    s = np.maximum((hi - lo) / f32(top), f32(1e-12))
    if mode == "float":
        z, q = -lo / s + f32(0), np.clip(np.round((v - lo) / s), 0, top)
    else:
        z = np.round(-lo / s) + f32(0)
        q = np.clip(np.round(v / s) + z, 0, top)
    return case(fmt, g, q, s, z, mode)


def ternary(g):
    v = groups(g)
    s = np.abs(v).astype(np.float64).mean(2, keepdims=True).astype(f32)
    s = np.maximum(s, f32(1e-12))
    return case("ternary", g, np.clip(np.round(v / s), -1, 1) + 1, s, np.zeros_like(s), "symmetric")


def int1(g):
    v = groups(g)
    s = np.maximum(np.abs(v).astype(np.float64).mean(2, keepdims=True).astype(f32), f32(1e-12))
    return case("int1", g, (v >= 0), s, np.zeros_like(s), "symmetric")


def fp8(fmt, mantissa, bias, largest, g):
    """Nearest in exact fractions: the candidates are all finite codes."""
    values = []
    for code in range(128):
        e, m = code >> mantissa, code & ((1 << mantissa) - 1)
        x = Fraction(m, 1 << mantissa) * Fraction(2) ** (1 - bias) if e == 0 else \
            (1 + Fraction(m, 1 << mantissa)) * Fraction(2) ** (e - bias)
        if x <= largest:
            values.append(x)

    def nearest(x):
        a = abs(Fraction(float(x)))
        best = min(range(len(values)), key=lambda c: (abs(values[c] - a), c & 1))
        return best | (128 if np.signbit(x) else 0)

    v = groups(g)
    s = np.maximum(np.abs(v).max(2, keepdims=True) / f32(largest), f32(1e-12))
    q = np.vectorize(nearest, otypes=[np.uint8])(v / s)
    return case(fmt, g, q, s, np.zeros_like(s), "symmetric")


print(json.dumps({
    "shape": [N, K],
    "weights": pack(w, "<f4"),
    "cases": [
        signed("int8", K, 127, 0), signed("int8", 32, 127, 0),
        affine("int4", 4, 32, "integer"), affine("int4", 4, 64, "integer"), affine("int4", 4, 128, "integer"),
        affine("int4", 4, 64, "float"), signed("int4", 64, 7, 8), signed("int4", 128, 7, 8),
        affine("int3", 3, 64, "integer"), affine("int3", 3, 64, "float"), signed("int3", 64, 3, 4),
        affine("int2", 2, 64, "integer"), affine("int2", 2, 32, "float"), signed("int2", 32, 1, 2),
        ternary(K), ternary(64), int1(K), int1(32),
        fp8("fp8_e4m3", 3, 7, 448, K), fp8("fp8_e4m3", 3, 7, 448, 128),
        fp8("fp8_e5m2", 2, 15, 57344, K),
    ],
}, indent=0))
