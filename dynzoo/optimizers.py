"""Muon on the manifold of orthonormal matrices."""

from __future__ import annotations

import keras
from keras import ops

from dynzoo import constraints, spectral

__all__ = ["RiemannianMuon", "tangent"]


def tangent(matrix, gradient):
    r"""Part of a gradient that is tangent to the orthonormal matrices at ``matrix``.

    For rows: $G - \tfrac12 (GX^T + XG^T) X$; for a tall matrix the same with columns. What is cut
    off points away from the manifold and would be undone by the projection.
    """
    x = ops.transpose(matrix)
    if matrix.shape[0] > matrix.shape[1]:
        s = ops.matmul(x, gradient)
        return gradient - ops.matmul(matrix, 0.5 * (s + ops.transpose(s)))
    s = ops.matmul(gradient, x)
    return gradient - ops.matmul(0.5 * (s + ops.transpose(s)), matrix)


@keras.saving.register_keras_serializable(package="dynzoo")
class RiemannianMuon(keras.optimizers.Muon):
    r"""Keras' Muon with gradients made tangent for kernels under an `Orthonormal` constraint.

    $$M \leftarrow \mu M + P_X(G), \quad X \leftarrow \Pi(X - \eta\,\mathrm{msign}(P_X(G)+\mu M))$$

    $P_X$ is the tangent projection, msign the polar factor, and $\Pi$ the constraint. Every
    singular direction of a kernel moves equally fast, which suits kernels whose singular values
    are all one; without $P_X$ the polar factor spends part of each step on directions that the
    constraint takes back. Other variables: as in `keras.optimizers.Muon`, whose arguments these
    are.

    Example:

    >>> model.compile(RiemannianMuon(0.05, rms_rate=None, weight_decay=None), "mse")

    Reference: K. Jordan et al., "Muon" (2024); retraction by Newton-Schulz as in `Orthonormal`.
    """

    def build(self, var_list):
        super().build(var_list)
        # Noted here: TensorFlow hands `update_step` its own variables, without their constraint.
        self._on_manifold = [
            isinstance(v.constraint, constraints.Orthonormal) and len(v.shape) == 2
            for v in var_list
        ]

    def update_step(self, gradient, variable, learning_rate):
        if self._on_manifold[self._get_variable_index(variable)]:
            gradient = tangent(ops.convert_to_tensor(variable), gradient)
        super().update_step(gradient, variable, learning_rate)

    def zeropower_via_newtonschulz5(self, x, steps):
        """Keras' iteration, run on the Gram matrix: for long matrices many times cheaper."""
        x = x / (ops.norm(x) + 1e-7)
        return spectral.polar_iteration(x, [(self.muon_a, self.muon_b, self.muon_c)] * steps)
