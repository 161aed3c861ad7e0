"""A comparison's distribution: F in P(i preferred over j) = F(q_i - q_j), and its derivatives.

"probit" is the normal distribution function (Thurstone 1927, Case V, in units of the comparison's standard
deviation), "logit" the logistic one (Bradley and Terry 1952). numpy has neither, and scipy takes longer to
import than an image to score.
"""

from __future__ import annotations

from math import erfc, exp
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Link = Literal["probit", "logit"]
LINKS = ("probit", "logit")
Array: TypeAlias = NDArray[np.float64]

_SQRT_HALF = 0.5**0.5
_DENSITY_AT_0 = (0.5 / np.pi) ** 0.5
# phi(z) / Phi(-z) - z for z >= 0 is their quotient within 2e-15 of its value, powers of z rising: the closest
# rational function of these degrees, by reweighted least squares in arithmetic of 150 digits.
_EXCESS_ABOVE = (
    0.7978845608028645,
    1.0663499170193045,
    0.719567874975841,
    0.31435258208047767,
    0.09689145466925238,
    0.02174166590676652,
    0.003550014200800341,
    0.0004083217310987374,
    3.030979926106411e-05,
    1.129460836303109e-06,
)
_EXCESS_BELOW = (
    1.0,
    1.7919010028379732,
    1.5813095329769706,
    0.8933225120695764,
    0.3554334679901276,
    0.10380962296554218,
    0.02255153262809237,
    0.00361063379905362,
    0.0004105806527728966,
    3.030979926106064e-05,
    1.1294608363031103e-06,
)


def normal_distribution(x: Array) -> Array:
    """Phi(x), shaped as x, to the last digits in both tails."""
    return np.array([0.5 * erfc(-_SQRT_HALF * value) for value in x.ravel().tolist()]).reshape(x.shape)


def ratios_alone(x: Array, link: Link) -> Array:
    """d/dx log F(x), [E]: phi / Phi at x, or expit(-x). Raises ZeroDivisionError where Phi is 0, x < -37."""
    # For a few values math is faster than numpy, which has no Phi either.
    if link == "logit":
        return np.array([1.0 / (1.0 + exp(value)) for value in x.tolist()])
    scaled = np.array([exp(-0.5 * value * value) / erfc(-_SQRT_HALF * value) for value in x.tolist()])
    scaled *= 2.0 * _DENSITY_AT_0
    return scaled


def ratios(d: Array, link: Link) -> Array:
    """d/dx log F(x) at x = d, then at -d, [2, P, B], of d [P, B].

    The normal distribution's follow from phi / Phi at -|d|, which is |d| and a little more.
    """
    both = np.empty((2, *d.shape))
    if link == "logit":
        np.tanh(-0.5 * d, out=both[0])
        np.negative(both[0], out=both[1])
        both *= 0.5
        both += 0.5
        return both
    z = np.abs(d)
    unlikely = _horner(_EXCESS_ABOVE, z)
    unlikely /= _horner(_EXCESS_BELOW, z)
    unlikely += z
    z *= z
    z *= -0.5
    bell = np.exp(z, out=z)
    bell *= _DENSITY_AT_0
    likely = bell / unlikely
    np.subtract(1.0, likely, out=likely)
    np.divide(bell, likely, out=likely)
    ahead = d >= 0.0
    both[0] = np.where(ahead, likely, unlikely)
    both[1] = np.where(ahead, unlikely, likely)
    return both


def _horner(coefficients: tuple[float, ...], z: Array) -> Array:
    total = np.full_like(z, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total *= z
        total += coefficient
    return total


def derivatives(x: Array, ratio: Array, preference: Array, link: Link) -> tuple[Array, Array, Array]:
    """l'(x), -l''(x) and l'''(x) of l(x) = C log F(x), shaped as x, from the ratio r = F' / F.

    Probit: r' = -r (x + r) and r'' = r (x + r) (x + 2r) - r. For x << 0 the sum x + r loses about x^2
    rounding errors, which is little: the prior keeps |x| below 2n. Logit: r' = -r (1 - r).
    """
    first = preference * ratio
    if link == "logit":
        second = first - first * ratio
        return first, second, second - 2.0 * second * ratio
    total = ratio + x
    second = first * total
    total += ratio
    total *= second
    total -= first
    return first, second, total
