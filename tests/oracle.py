"""Quantizers and their gradients, written out in scalar float64."""
import math
from typing import List, NamedTuple, Sequence


class Gradients(NamedTuple):
    y: List[float]
    x: List[float]
    clip: float
    theta: List[float]


def lcq(x: Sequence[float], dy: Sequence[float], clip: float,
        theta: Sequence[float], bits: int, signed: bool) -> Gradients:
    """Quantize ``x`` and send ``dy`` back, element by element."""
    K = len(theta)
    s = 2**(bits - 1) - 1 if signed else 2**bits - 1
    total = sum(math.exp(t) for t in theta)
    p = [math.exp(t) / total for t in theta]
    gamma = [K * value for value in p]
    beta = [sum(p[:k]) for k in range(K)]
    ys, dxs, dclip = [], [], 0.
    dgamma, dbeta = [0.] * K, [0.] * K
    for value, grad in zip(x, dy):
        if value == 0 or (value < 0 and not signed):
            ys.append(0.)
            dxs.append(grad if value == 0 and signed else 0.)
            continue
        sign = math.copysign(1., value)
        v = abs(value) / clip
        if v >= 1:
            ys.append(sign * clip)
            dxs.append(0.)
            dclip += grad * sign
            continue
        i = int(v * K)
        u = round(s * (gamma[i] * (v - i / K) + beta[i])) / s
        q = max(k for k in range(K) if k == 0 or beta[k] <= u)
        g = (u - beta[q]) / gamma[q] + q / K
        ys.append(sign * clip * g)
        dxs.append(grad)
        dclip += grad * sign * (g - v)
        dgamma[i] += grad * sign * clip * (v - i / K) / gamma[q]
        dbeta[i] += grad * sign * clip / gamma[q]
        dgamma[q] -= grad * sign * clip * (u - beta[q]) / gamma[q]**2
        dbeta[q] -= grad * sign * clip / gamma[q]
    dp = [K * dgamma[j] + sum(dbeta[j + 1:]) for j in range(K)]
    mean = sum(a * b for a, b in zip(p, dp))
    return Gradients(ys, dxs, dclip, [p[j] * (dp[j] - mean) for j in range(K)])


class StepGradients(NamedTuple):
    y: List[float]
    x: List[float]
    step: float


def lsq(x: Sequence[float], dy: Sequence[float], step: float, bits: int,
        signed: bool, num_values: int) -> StepGradients:
    """Do so with LSQ; its N is ``num_values``."""
    lowest = -2**(bits - 1) if signed else 0
    highest = 2**(bits - 1) - 1 if signed else 2**bits - 1
    ys, dxs, dstep = [], [], 0.
    for value, grad in zip(x, dy):
        v = value / step
        inside = lowest < v < highest
        code = round(v) if inside else lowest if v <= lowest else highest
        ys.append(code * step)
        dxs.append(grad if inside else 0.)
        dstep += grad * (code - v if inside else code)
    return StepGradients(ys, dxs, dstep / math.sqrt(num_values * highest))
