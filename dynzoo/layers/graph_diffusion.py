"""Diffusion of functions on a graph: explicit heat steps that are averages, hence stable."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from dynzoo.fields import convection_diffusion as field
from dynzoo.guarantee import Guarantee
from dynzoo.utils.arguments import array, integer, number, one_of

__all__ = ["GraphDiffusion"]


@keras.saving.register_keras_serializable(package="dynzoo")
class GraphDiffusion(keras.layers.Layer):
    r"""Explicit heat steps on a weighted graph, after a classifier's probabilities or on features.

    $$u' = -L u, \qquad u \leftarrow u - \sigma^2 L u, \qquad L = D - W, \quad D_{ii} =
    \textstyle\sum_j w_{ij}$$

    Guarantee: with $\sigma^2 \max_i (D_{ii} - w_{ii}) \le 1$ each step is an average over nodes
    with weights that are not negative and sum to 1. Then no channel of u leaves the range of its
    values (maximum principle), rows of u that sum to 1 keep doing so, and a symmetric W keeps the
    sum over the nodes and is L2-stable (by Gershgorin $\sigma^2\lambda_{max}(L) \le 2$). For a
    constant graph a larger ``sigma2`` is refused; for a graph that comes with the data the step is
    clamped to the largest admissible one, $1 / \max_i(D_{ii} - w_{ii})$, graph by graph.

    The graph is one of

    * constant: the argument ``adjacency``; inputs u;
    * data, ``graph="adjacency"``: inputs [u, W]; negative weights count as 0;
    * built, ``graph="knn"``: inputs [u, features], or u, which then is its own features:
      $w_{ij} = \exp(-(d_{ij}/d_i^{(s)})^2)$ for $d_{ij} < d_i^{(k)}$, normalised, symmetrised.

    Nodes are the last axis but one. With u of shape (nodes, channels) the nodes **are** the batch:
    an example's output depends on the others (``depends_on_batch`` is true), so that an attack must
    hold the whole batch in its loop, and there is no certificate for one example. With u of shape
    (batch, nodes, channels) each example has its own graph. The steps run in float32 or better
    whatever the compute type, for averages in bfloat16 are none.

    Args:
        sigma2: step $\sigma^2$, positive and dimensionless.
        steps: number of steps.
        graph: ``"constant"``, ``"adjacency"`` or ``"knn"``; by default constant if ``adjacency``
            is given, else ``"adjacency"``.
        adjacency: array (nodes, nodes) of weights that are finite and not negative, for a constant
            graph. It is kept in the config: send a large one as an input.
        self_loops: add the identity to a given W (it matters to the normalisation only).
        normalize: replace a given W by $D^{-1/2}WD^{-1/2}$.
        neighbours: k of the knn graph; the point itself is the first, and the k-th is left out.
        scale_neighbour: s of the knn graph, at most k.

    Input shape: u (nodes, channels) or (batch, nodes, channels), and W (nodes, nodes) or features
    (nodes, d), with the same batch axis if any. Output shape: that of u.

    Raises:
        ValueError: if an argument is out of its range, the constant graph makes the step unstable,
            or shapes do not fit.

    Example:

    >>> import numpy as np
    >>> from dynzoo.layers import GraphDiffusion
    >>> path = [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    >>> tuple(GraphDiffusion(0.5, steps=2, adjacency=path)(np.eye(3, dtype="float32")).shape)
    (3, 3)

    Reference: T. Wang et al., "Convection-diffusion equation: a theoretically certified framework
    for neural networks" (arXiv 2403.15726): COIN, its diffusion layers and graph weights.
    """

    def __init__(
        self,
        sigma2,
        steps=1,
        graph=None,
        adjacency=None,
        self_loops=False,
        normalize=False,
        neighbours=8,
        scale_neighbour=4,
        **kwargs,
    ):
        # Inputs are taken as they come: a graph rounded to bfloat16 is another graph.
        super().__init__(autocast=False, **kwargs)
        self.sigma2 = number("sigma2", sigma2)
        self.steps = integer("steps", steps)
        if graph is None:
            graph = "adjacency" if adjacency is None else "constant"
        self.graph = one_of("graph", graph, ("constant", "adjacency", "knn"))
        self.self_loops = bool(self_loops)
        self.normalize = bool(normalize)
        self.neighbours = integer("neighbours", neighbours)
        self.scale_neighbour = integer("scale_neighbour", scale_neighbour)
        if self.scale_neighbour > self.neighbours:
            raise ValueError(
                f"`scale_neighbour` must be at most `neighbours`={self.neighbours}. "
                f"Received: scale_neighbour={scale_neighbour}"
            )
        if (self.graph == "constant") != (adjacency is not None):
            raise ValueError(
                "`adjacency` must be given for graph='constant' and for no other. "
                f"Received: graph={self.graph!r}, adjacency="
                + ("None" if adjacency is None else "an array")
            )
        # A plain list of lists: what a config can hold.
        self.adjacency: Any = None if adjacency is None else _checked_adjacency(adjacency).tolist()
        self._matrix: Any = None
        self._nodes_are_batch = True  # until `build` sees a shape
        if adjacency is not None:
            if self.sigma2 > self.step_limit * (1 + 1e-12):
                raise ValueError(
                    f"`sigma2` must be in (0, {self.step_limit:g}], or steps on this graph are not "
                    f"averages and may be unstable. Received: sigma2={sigma2}"
                )
            self._matrix = field.averaging_matrix_float64(self._weights_float64(), self.sigma2)

    def _weights_float64(self, weights=None):
        weights = np.array(self.adjacency if weights is None else weights, dtype=np.float64)
        weights = np.maximum(weights, 0.0)
        if self.self_loops:
            weights = weights + np.eye(weights.shape[-1])
        return field.normalized_float64(weights) if self.normalize else weights

    @property
    def step_limit(self) -> float:
        """Largest admissible ``sigma2`` of the constant graph (infinite for others: clamped)."""
        if self.adjacency is None:
            return math.inf
        weights = self._weights_float64()
        largest = float((weights.sum(axis=1) - np.diag(weights)).max())
        return 1.0 / largest if largest > 0 else math.inf

    @property
    def depends_on_batch(self) -> bool:
        """Whether an example's output depends on the others in its batch (once built)."""
        return self._nodes_are_batch

    def build(self, input_shape):
        shape, other = _shapes(input_shape)
        if len(shape) not in (2, 3) or (other is not None and len(other) != len(shape)):
            raise ValueError(
                "`GraphDiffusion` needs u of shape (nodes, channels) or (batch, nodes, channels), "
                f"and a second input of the same rank. Received: input_shape={input_shape}"
            )
        if self.graph == "adjacency" and other is None:
            raise ValueError(
                "`GraphDiffusion` with graph='adjacency' needs inputs [u, W]. "
                f"Received: input_shape={input_shape}"
            )
        if self.graph == "constant" and other is not None:
            raise ValueError(
                "`GraphDiffusion` with a constant graph needs one input. "
                f"Received: input_shape={input_shape}"
            )
        nodes = len(self.adjacency) if self.graph == "constant" else shape[-2]
        wanted = [shape[-2]] if other is None else [shape[-2], other[-2]]
        if self.graph == "adjacency":
            wanted.append(other[-1])
        if any(size not in (None, nodes) for size in wanted) and nodes is not None:
            raise ValueError(
                f"`GraphDiffusion` needs the same number of nodes ({nodes}) in u and its graph. "
                f"Received: input_shape={input_shape}"
            )
        self._nodes_are_batch = len(shape) == 2

    def call(self, inputs):
        u, other = inputs if isinstance(inputs, (list, tuple)) else (inputs, None)
        kind = keras.backend.standardize_dtype(u.dtype)
        dtype = "float64" if kind == "float64" else "float32"
        u = ops.cast(u, dtype)
        matrix = self._averaging_matrix(u if other is None else ops.cast(other, dtype), dtype)
        for _ in range(self.steps):
            u = ops.matmul(matrix, u)
        return ops.cast(u, kind) if keras.backend.is_float_dtype(kind) else u

    def _averaging_matrix(self, source, dtype):
        if self.graph == "constant":
            return ops.convert_to_tensor(self._matrix, dtype=dtype)
        if self.graph == "knn":
            weights = field.knn_gaussian(source, self.neighbours, self.scale_neighbour)
        else:
            weights = ops.relu(source)
            if self.self_loops:
                size = source.shape[-1] or ops.shape(source)[-1]
                weights = weights + ops.eye(size, dtype=dtype)
            if self.normalize:
                weights = field.normalized(weights)
        return field.averaging_matrix(weights, self.sigma2)

    def call_float64(self, inputs):
        """The same in NumPy float64."""
        u, other = inputs if isinstance(inputs, (list, tuple)) else (inputs, None)
        u = np.asarray(u, dtype=np.float64)
        matrix = self._matrix
        if self.graph == "knn":
            weights = field.knn_gaussian_float64(
                u if other is None else other, self.neighbours, self.scale_neighbour
            )
            matrix = field.averaging_matrix_float64(weights, self.sigma2)
        elif self.graph == "adjacency":
            matrix = field.averaging_matrix_float64(self._weights_float64(other), self.sigma2)
        for _ in range(self.steps):
            u = matrix @ u
        return u

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the Lipschitz constant of one example, for a constant graph."""
        if self.graph != "constant" or len(_shapes(input_shape)[0]) == 2:
            raise ValueError(
                f"Layer {self.name!r} has no Lipschitz bound for one example: its graph depends "
                "on the inputs, or its nodes are the examples of a batch."
            )
        # For a symmetric graph 1; the margin is for the float64 SVD.
        norm = float(np.linalg.norm(self._matrix, 2)) * (1.0 + 1e-12)
        return norm**self.steps

    def guarantees(self) -> list[Guarantee]:
        """What holds for this diffusion as it is configured."""
        source = "arXiv 2403.15726, the diffusion layers; stability by Gershgorin"
        how = "the step is clamped to it, graph by graph"
        if self.graph == "constant":
            how = f"sigma2 = {self.sigma2:g} <= {self.step_limit:g}, checked"
        condition = f"sigma2 * max_i (D_ii - w_ii) <= 1: {how}"
        found = [
            Guarantee(
                "maximum principle",
                "each channel of u stays between its smallest and largest value over the nodes, "
                "up to the rounding of its largest |u|",
                condition=condition,
                source=source,
            ),
            Guarantee(
                "row sums kept",
                "rows of u that sum to 1 keep doing so (L 1 = 0), up to rounding of their largest "
                "entries",
                1.0,
                "by construction",
                source,
            ),
        ]
        symmetric = self.graph == "knn"
        if self.graph == "constant":
            symmetric = bool(np.array_equal(self._matrix, self._matrix.T))
        if symmetric:
            found.append(
                Guarantee(
                    "mass kept",
                    "the sum of u over the nodes is constant up to the rounding of the sum of |u|, "
                    "and steps on a fixed graph are "
                    "1-Lipschitz in L2",
                    1.0,
                    f"W symmetric; {condition}",
                    source,
                )
            )
        return found

    def compute_output_spec(self, inputs):
        # As `call`: the type of u, whatever the policy.
        u = inputs[0] if isinstance(inputs, (list, tuple)) else inputs
        kind = keras.backend.standardize_dtype(u.dtype)
        return keras.KerasTensor(u.shape, kind if keras.backend.is_float_dtype(kind) else "float32")

    def compute_output_shape(self, input_shape):
        return tuple(_shapes(input_shape)[0])

    def get_config(self):
        return {
            **super().get_config(),
            "sigma2": self.sigma2,
            "steps": self.steps,
            "graph": self.graph,
            "adjacency": self.adjacency,
            "self_loops": self.self_loops,
            "normalize": self.normalize,
            "neighbours": self.neighbours,
            "scale_neighbour": self.scale_neighbour,
        }


def _shapes(input_shape):
    """(shape of u, shape of the second input or None)."""
    if isinstance(input_shape[0], (list, tuple)):
        u, other = input_shape
        return tuple(u), tuple(other)
    return tuple(input_shape), None


def _checked_adjacency(adjacency) -> np.ndarray:
    weights = array("adjacency", adjacency)
    square = weights.ndim == 2 and weights.shape[0] == weights.shape[1] > 0
    if not (square and np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(
            "`adjacency` must be a square matrix of finite weights that are not negative. "
            f"Received: an array of shape {weights.shape}"
        )
    return weights
