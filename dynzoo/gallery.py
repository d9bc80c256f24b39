"""A planar example of each dynamical system: its trajectories, its promise, and what came of it.

The weights are random. What is measured is measured on the trajectories that are drawn, which the
running backend computes in float32, or, for Jacobians, on the float64 twin of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from dynzoo import backend, operators
from dynzoo import layers as dl
from dynzoo.fields.hamiltonian import canonical_matrix
from dynzoo.guarantee import Guarantee
from dynzoo.inference.model_layers import is_random
from dynzoo.utils.tensorflow_import import config_of

__all__ = ["Portrait", "TIMES", "portraits"]

TIMES = 60


@dataclass(frozen=True)
class Portrait:
    """A system, seen.

    Args:
        title: name of the system, and what it keeps.
        layer: one short step of an autonomous system.
        path: starts and their images under 1, 2, ... steps, array (times + 1, starts, 2).
        guarantee: the promise that was checked, an entry of ``layer.guarantees()``.
        promise: the promise in a few words.
        measured: what was measured, a number in words.
        violation: by how much the promise is broken, 0 or more.
        tolerance: what rounding (for a noise, chance) may break of it.
    """

    title: str
    layer: Any
    path: np.ndarray
    guarantee: Guarantee
    promise: str
    measured: str
    violation: float
    tolerance: float

    @property
    def kept(self) -> bool:
        """Whether the promise held, up to the tolerance."""
        return self.violation <= self.tolerance


def portraits(times: int = TIMES) -> Iterator[Portrait]:
    """Runs the systems one after another, from eight starts each.

    Args:
        times: number of steps.

    Example:

    >>> all(portrait.kept for portrait in portraits(times=20))
    True
    """
    angle = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    radius = np.tile([1.0, 0.6], 4)
    starts = (radius * np.stack([np.cos(angle), np.sin(angle)])).T.astype("float32")
    for title, (layer, name, check) in _systems().items():
        path = _trajectories(layer, starts, times)
        (guarantee,) = (g for g in layer.guarantees() if g.property == name)
        yield Portrait(title, layer, path, guarantee, *check(layer, path, guarantee))


# promise, what was measured, violation, tolerance
Check = Callable[[Any, np.ndarray, Guarantee], tuple[str, str, float, float]]


def _systems() -> dict[str, tuple[Any, str, Check]]:
    """Title: layer, the property that it promises, how to check that."""
    dense, ring = operators.Dense, np.eye(8)
    return {
        "gradient flow: 1-Lipschitz": (
            dl.GradientFlow(dense(8), step_size=0.1, seed=1), "1-Lipschitz", _distances,
        ),
        "implicit gradient flow: 1-Lipschitz": (
            dl.ImplicitGradientFlow(dense(8), "tanh", step_size=0.1, seed=1),
            "1-Lipschitz", _distances,
        ),
        "softmax gradient flow: 1-Lipschitz": (
            dl.SoftmaxGradientFlow(8, beta=4.0, step_size=0.1, seed=1), "1-Lipschitz", _distances,
        ),
        "switching flow: 1-Lipschitz": (
            dl.SwitchingFlow(dense(2), step_size=0.4, seed=2), "1-Lipschitz", _distances,
        ),
        "spherical flow: |x| kept": (
            dl.SphericalFlow(dense(8), step_size=0.2, seed=3), "norm kept", _norms,
        ),
        "Presnov flow: gradient + spheres": (
            dl.PresnovFlow(dense(8), step_size=0.05, seed=4),
            "norm kept by the sphere part", _norms_of_sphere_part,
        ),
        "mass preserving: x + y kept": (
            dl.MassPreservingFlow(dense(8), step_size=0.1, seed=5), "linear invariant kept", _sums,
        ),
        "first integral kept": (
            dl.FirstIntegralFlow(dense(8), step_size=0.1, seed=6), "first integral kept",
            _integrals,
        ),
        "Hamiltonian: symplectic": (
            dl.HamiltonianFlow(dense(4), step_size=0.2, seed=7), "symplectic", _symplectic_form,
        ),
        "volume preserving": (
            dl.VolumePreservingFlow(dense(1), step_size=0.2, seed=9), "volume kept", _volume,
        ),
        "contractive Hamiltonian": (
            dl.ContractiveHamiltonianFlow(dense(4), kappa=0.7, step_size=0.05, seed=9),
            "1-Lipschitz", _distances,
        ),
        "convection-diffusion: one noise path": (
            dl.ConvectionDiffusionFlow(
                dense(8), sigma=0.05, step_size=0.05, inference="random", seed=10
            ),
            "noise variance", _variance,
        ),
        "graph diffusion on a ring: averages": (
            # the eight starts are the nodes
            dl.GraphDiffusion(0.05, adjacency=np.roll(ring, 1, 0) + np.roll(ring, -1, 0)),
            "maximum principle", _range_of_nodes,
        ),
    }  # fmt: skip


def _trajectories(layer: Any, starts: np.ndarray, times: int) -> np.ndarray:
    layer.build(starts.shape)
    rng = np.random.default_rng(0)
    for weight in layer.trainable_weights:
        if "bias" in weight.name:
            weight.assign(rng.normal(0, 0.5, weight.shape))
    step = layer
    # compiled once; a layer that draws has a state, which a plain compiled function must not change
    if not is_random(layer):
        step = backend.jit(layer)
    step = backend.without_grad(step)
    path = [ops.convert_to_tensor(starts)]
    for _ in range(times):
        path.append(step(path[-1]))
    return np.stack([backend.to_numpy(x) for x in path]).astype(np.float64)


# --- checks ----------------------------------------------------------------------------------


def _distances(layer, path, guarantee):
    """Largest growth of the distance of two trajectories in a step."""
    i, j = np.triu_indices(path.shape[1], 1)
    distance = np.linalg.norm(path[:, i] - path[:, j], axis=-1)
    far = distance[:-1] > 1e-2  # nearer pairs are rounding
    growth = float((distance[1:][far] / distance[:-1][far]).max())
    return (
        f"distances times {guarantee.value:.6g} at most",
        f"times {growth:.6f} at most, {far.sum():,} pairs",
        max(growth - guarantee.value, 0.0),
        1e-4,
    )


def _norms(layer, path, guarantee):
    lengths = np.linalg.norm(path, axis=-1)
    change = float(np.abs(lengths[1:] / lengths[:-1] - 1.0).max())
    return "|x| kept", f"changes by {change:.1e} of itself a step", change, guarantee.value


def _norms_of_sphere_part(layer, path, guarantee):
    """With the gradient part switched off, for it is the sphere part that keeps the norm."""
    twin = type(layer).from_config(config_of(layer))
    twin.build(path.shape[1:])
    twin.set_weights(layer.get_weights())
    for weights in twin.gradient_weights:
        weights["scales"].assign(np.zeros(weights["scales"].shape))
    # the images of all points of the trajectories under the sphere part
    x = path[:-1].reshape(-1, 2)
    y = np.linalg.norm(twin.call_float64(x), axis=-1)
    change = float(np.abs(y / np.linalg.norm(x, axis=-1) - 1.0).max())
    return "sphere part keeps |x|", f"changes by {change:.1e} of itself", change, guarantee.value


def _sums(layer, path, guarantee):
    moved = np.abs(np.diff(path.sum(axis=-1), axis=0))
    sizes = np.abs(path).sum(axis=-1)
    change = float((moved / np.maximum(sizes[:-1], sizes[1:])).max())
    return "x + y kept", f"changes by {change:.1e} of |x| + |y| a step", change, guarantee.value


def _range_of_nodes(layer, path, guarantee):
    high, low = path.max(axis=1), path.min(axis=1)
    out = max(float(np.diff(high, axis=0).max()), float(-np.diff(low, axis=0).min()), 0.0)
    width = float(((high - low)[-1] / (high - low)[0]).max())
    return "stays between its neighbours", f"range times {width:.2g} at the end", out, 1e-6


def _integrals(layer, path, guarantee):
    values = layer.integral_float64(path)
    sizes = layer.integral_magnitude(path)
    change = float((np.abs(np.diff(values, axis=0)) / np.maximum(sizes[:-1], sizes[1:])).max())
    return "I(x) kept", f"changes by {change:.1e} of its terms a step", change, guarantee.value


def _jacobians(layer, points, step=1e-5):
    basis = step * np.eye(points.shape[-1])
    ends = [layer.call_float64(points + d) - layer.call_float64(points - d) for d in basis]
    return np.stack(ends, axis=-1) / (2.0 * step)


def _symplectic_form(layer, path, guarantee):
    m, form = _jacobians(layer, path[0]), canonical_matrix(path.shape[-1])
    defect = float(np.abs(np.swapaxes(m, -1, -2) @ form @ m - form).max())
    return "M^T J M = J", f"off by {defect:.1e}", defect, 1e-8


def _volume(layer, path, guarantee):
    defect = float(np.abs(np.linalg.det(_jacobians(layer, path[0])) - 1.0).max())
    return "det M = 1", f"off by {defect:.1e}", defect, 1e-8


def _variance(layer, path, guarantee):
    """What the noiseless step leaves over, against the promised variance."""
    twin = type(layer).from_config({**config_of(layer), "inference": "deterministic"})
    twin.build(path.shape[1:])
    for mine, weight in zip(twin.trainable_weights, layer.trainable_weights, strict=True):
        mine.assign(weight)
    noise = path[1:] - twin.call_float64(path[:-1].reshape(-1, 2)).reshape(path[1:].shape)
    ratio = float((noise**2).mean()) / guarantee.value
    return (
        f"noise of variance {guarantee.value:.3g}",
        f"{ratio:.2f} times that, {noise.size:,} draws",
        abs(ratio - 1.0),
        5.0 * (2.0 / noise.size) ** 0.5,  # five standard deviations of a sample variance
    )
