"""Divergences of distributions over the same finite set of points, and what a discriminator makes of them.

V(D) = E_p log D + E_q log(1 - D) is greatest for D* = p / (p + q), and V(D*) = 2 JS(p, q) - 2 log 2: arXiv:1406.2661.
"""

import math

import numpy as np

Array = np.ndarray


def kullback_leibler(p: Array, q: Array) -> float:
    """E_p log(p / q): infinite where q is zero and p is not; points that p leaves out count nothing."""
    inside = p > 0
    if (q[inside] <= 0).any():
        return math.inf
    return float((p[inside] * (np.log(p[inside]) - np.log(q[inside]))).sum())


def jensen_shannon(p: Array, q: Array) -> float:
    """The mean divergence of p and q from their middle: from 0 to log 2."""
    middle = (p + q) / 2
    return (kullback_leibler(p, middle) + kullback_leibler(q, middle)) / 2


def best_discriminator(p: Array, q: Array) -> Array:
    """D* = p / (p + q) for each point that one of them has."""
    return p / (p + q)


def game(p: Array, q: Array, d: Array) -> float:
    """V(D), with 0 log 0 = 0."""
    return float(p[p > 0] @ np.log(d[p > 0]) + q[q > 0] @ np.log1p(-d[q > 0]))
