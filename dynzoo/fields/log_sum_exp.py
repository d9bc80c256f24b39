r"""Gradient of a log-sum-exp over keys: $\nabla V(x) = Kp$, $p = softmax(\beta K^Tx + b)$.

$V(x) = \tfrac1\beta\log\sum_i\exp(\beta k_i^Tx + b_i)$ is convex, with the Hessian
$\nabla^2V = \beta K(diag(p) - pp^T)K^T$. For a unit vector u and $v = K^Tu$

$$u^T\nabla^2V u = \beta(\textstyle\sum_ip_iv_i^2 - (\sum_ip_iv_i)^2) = \beta\,Var_p(v)
\le \tfrac\beta4(\max_iv_i - \min_iv_i)^2$$

by Popoviciu's inequality. As $|v_i - v_j| = |u^T(k_i - k_j)|$, the largest curvature is at most
$\tfrac\beta4D^2$, D the largest distance of two keys; two keys attain it where $p = (1/2, 1/2)$. As
$|k_i - k_j| = |K(e_i - e_j)| \le \sqrt2\|K\|$, it is at most $\tfrac\beta2\|K\|^2$: the Jacobian
$diag(p) - pp^T$ of the softmax has a norm of at most 1/2. So an explicit step of
$x' = -\nabla V(x)$, with the symmetric Jacobian $I - h\nabla^2V$, is 1-Lipschitz for
$h \le 4/(\beta\|K\|^2)$: twice $2/(\beta\|K\|^2)$.

Reference: B. Gao and L. Pavel, "On the properties of the softmax function with application in game
theory and reinforcement learning" (arXiv 1704.00805), for the softmax as a gradient; H. Kim,
G. Papamakarios and A. Mnih, "The Lipschitz constant of self-attention" (arXiv 2006.04710).
"""

from __future__ import annotations

import numpy as np
from keras import ops

from dynzoo import spectral

__all__ = ["curvature_float64", "softmax_gradient", "softmax_gradient_float64"]

# a distance in float64 rounds by a few 1e-16
_SLACK = 1.0 + 1e-12


def softmax_gradient(x, kernel, bias, beta, scale):
    """h K softmax(beta K^T x + b) on x (..., features); kernel (features, keys), scale h."""
    scores = beta * ops.matmul(x, kernel)
    if bias is not None:
        scores = ops.add(scores, bias)
    # the scale goes to the weights, which are at most 1
    return ops.matmul(scale * ops.softmax(scores, axis=-1), ops.transpose(kernel))


def softmax_gradient_float64(x, kernel, bias, beta):
    """K softmax(beta K^T x + b) in NumPy."""
    scores = beta * (x @ kernel) + bias
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)) @ kernel.T


def curvature_float64(kernel, beta) -> float:
    """Upper bound of the largest curvature of the potential, by the norm and by the distances."""
    norm = spectral.dense_norm_float64(kernel)
    farthest = max(
        float(np.max(np.sum((kernel - kernel[:, i : i + 1]) ** 2, axis=0)))
        for i in range(kernel.shape[1])
    )
    return beta * min(0.5 * norm**2, 0.25 * farthest) * _SLACK
