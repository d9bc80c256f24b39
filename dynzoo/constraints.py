"""Keras constraints that keep an operator non-expansive or norm-preserving.

A constraint is a pure function of the kernel: it holds no state, works in float32 under jit on
every backend, and returns the kernel's own dtype. Keras applies it after each optimizer update of
a *trainable* variable and at no other time; ``project`` imposes every constraint of a model now
(after ``set_weights``, weight averaging, or a custom training loop).
"""

from __future__ import annotations

import math
import warnings
import weakref

import keras
import numpy as np
from keras import ops

from dynzoo import backend, spectral
from dynzoo.utils.arguments import integer, listed, number, one_of

__all__ = [
    "ORTHONORMAL_KEPT",
    "Orthonormal",
    "ProjectWeights",
    "SpectralNorm",
    "SwapProjectedEMAWeights",
    "UnmetConstraintWarning",
    "hint_at_unmet",
    "project",
    "projected_at_end",
    "unmet",
]

# A norm this little above the limit is left alone, so that a feasible kernel is not touched by
# the rounding of its own bound, and projecting twice is projecting once.
_TOLERANCE = 5e-6
_HUGE = 2.0**60
# From here on a weight is off its constraint by more than training in float32 leaves.
_UNMET = 1e-3
# Models that a callback of this file projects when their training ends.
_PROJECTED_AT_END: weakref.WeakSet = weakref.WeakSet()
# The condition of everything that is made of orthonormal kernels, in the words of `guarantees()`.
ORTHONORMAL_KEPT = (
    "to 1e-5 by the 'orthonormal' constraint after every update that leaves no singular value "
    "below 1e-6 of the largest, or by `project`"
)


def started(initializer, constraint):
    """An initializer whose kernel is within a constraint before the first update.

    Args:
        initializer: Keras initializer.
        constraint: Keras constraint, or ``None``.
    """
    if constraint is None:
        return initializer
    return lambda shape, dtype=None: constraint(initializer(shape, dtype=dtype))


def _as_matrix(kernel):
    """Rows = outputs of a dense or 1x1 kernel are its last axis: (inputs, outputs) -> A^T."""
    return ops.reshape(kernel, (-1, kernel.shape[-1]))


@keras.saving.register_keras_serializable(package="dynzoo")
class SpectralNorm(keras.constraints.Constraint):
    r"""Scales a kernel back so that its operator norm is at most ``max_norm``.

    $$K \leftarrow K \cdot \min(1, \text{max\_norm} / \overline{\sigma}(K))$$

    Guarantee: the true operator norm is at most ``max_norm * (1 + 1e-5)`` afterwards, from any
    finite kernel, for float32 kernels (products are made in full float32, never in TF32; inside a
    compiled function on TensorFlow the process' setting counts, which ``dynzoo train`` sets); a
    kernel of another type is then rounded to it (bfloat16: entries move by up to 1/256). For a 2-D
    kernel it is that of the matrix; for a 4-D convolution kernel (stride 1) it is that of the
    convolution itself, not of the reshaped kernel, whose norm can be k times smaller.
    $\overline{\sigma}$ is an upper bound by Gram iteration. A feasible kernel is left untouched;
    a small kernel is never scaled up.

    Args:
        max_norm: largest allowed operator norm, positive.
        spatial: image size (height, width) in pixels on which a convolution kernel acts. ``None``
            gives a (slightly larger) bound that holds for every image size.
        padding: ``"zero"`` or ``"circular"``, the padding of the convolution.
        iterations: Gram iterations; the bound's relative excess is about 1e-3 at 6, 1e-5 at 10.

    Raises:
        ValueError: if an argument is out of its range, or the kernel is neither 2-D nor 4-D.

    Example:

    >>> import keras
    >>> from dynzoo.constraints import SpectralNorm
    >>> layer = keras.layers.Dense(8, kernel_constraint=SpectralNorm(1.0))

    Reference: Delattre et al., ICML 2023 (Gram iteration); Sedghi et al., ICLR 2019 (symbols).
    """

    def __init__(self, max_norm=1.0, spatial=None, padding="zero", iterations=10):
        self.max_norm = number("max_norm", max_norm)
        if spatial is not None:
            spatial = tuple(integer("spatial", n) for n in listed(spatial))
            if len(spatial) != 2:
                raise ValueError(
                    f"`spatial` must be None or two positive integers. Received: spatial={spatial}"
                )
        self.spatial = spatial
        self.padding = one_of("padding", padding, ("zero", "circular"))
        self.iterations = integer("iterations", iterations)

    def __call__(self, w):
        w = ops.convert_to_tensor(w)
        self._check(w.shape)
        return ops.cast(self._scaled(ops.cast(w, "float32"), self._bound), w.dtype)

    def _scaled(self, kernel, bound_of):
        with backend.full_precision():
            bound = bound_of(kernel)
        limit = self.max_norm
        # A huge bound in two factors, for limit / bound would leave the normal numbers.
        huge = ops.where(bound > _HUGE, 1.0 / _HUGE, ops.ones_like(bound))
        bound = bound * huge
        too_long = (huge < 1.0) | (bound > limit * (1 + _TOLERANCE))
        scale = ops.where(too_long, limit / bound, ops.ones_like(bound))
        return kernel * huge[..., None, None] * scale[..., None, None]

    def stacked(self, w):
        """The same of each matrix of a stack (count, rows, columns)."""

        def bound_of(kernels):
            return spectral.dense_norm(kernels, self.iterations)

        return ops.cast(self._scaled(ops.cast(w, "float32"), bound_of), w.dtype)

    def _bound(self, kernel):
        if len(kernel.shape) == 4 and tuple(kernel.shape[:2]) != (1, 1):
            if self.spatial is not None:
                return spectral.conv_norm(kernel, self.spatial, self.padding, self.iterations)
            # Same sampling argument as spectral.conv_all_sizes_norm_float64.
            grid = max(32, 8 * max(kernel.shape[:2]))
            loss = np.prod([np.cos((k - 1) * np.pi / grid) for k in kernel.shape[:2]])
            sampled = spectral.conv_norm(kernel, (grid, grid), "circular", self.iterations)
            return sampled / float(np.sqrt(loss))
        return spectral.dense_norm(_as_matrix(kernel), self.iterations)

    def nearest(self, kernel: np.ndarray) -> np.ndarray:
        """The same projection in float64, with the norm of ``certify`` (used by ``project``)."""
        self._check(kernel.shape)
        kernel = np.asarray(kernel, dtype=np.float64)
        if kernel.ndim == 4 and kernel.shape[:2] != (1, 1):
            if self.spatial is None:
                norm = spectral.conv_all_sizes_norm_float64(kernel)
            else:
                norm = spectral.conv_norm_float64(kernel, self.spatial, self.padding)
        else:
            norm = spectral.dense_norm_float64(kernel.reshape(-1, kernel.shape[-1]))
        limit = self.max_norm * (1 + _TOLERANCE)
        return kernel if norm <= limit else kernel * (self.max_norm / norm)

    @staticmethod
    def _check(shape):
        # Of any other kernel (Conv1D, Conv3D, EinsumDense) the reshaped matrix bounds nothing.
        if len(shape) not in (2, 4):
            raise ValueError(
                "`SpectralNorm` applies to matrices and 2-D convolution kernels. "
                f"Received: a kernel of shape {tuple(shape)}"
            )

    def get_config(self):
        return {
            "max_norm": self.max_norm,
            "spatial": self.spatial,
            "padding": self.padding,
            "iterations": self.iterations,
        }


@keras.saving.register_keras_serializable(package="dynzoo")
class Orthonormal(keras.constraints.Constraint):
    r"""Makes the shorter side of a matrix orthonormal: a polynomial iteration to the polar factor.

    $$X \leftarrow X\,(I + \tfrac12E + \tfrac38E^2 + \dots + c_7E^7), \quad E = I - X^TX,
    \qquad X^TX \to I$$

    The rows of a wide matrix, the columns of a tall one. Every call takes one round of order 8 and
    bounds what is left. If that is above 1e-6, because the kernel was far, further rounds follow.

    Guarantee: the spectral norm is at most 1 + 1e-5 after every call, from any finite kernel. The
    smallest singular value is at least 1 - 1e-5 if before the call it was at least 1e-6 of the
    largest, whatever their size. A smaller one is multiplied by up to 3.1 a round, and may end
    anywhere below 1; an exact 0 stays 0. ``project`` uses the exact polar factor, which mends that
    as well. This is for float32 kernels; products are made in full float32, never in TF32 (inside
    a compiled function on TensorFlow the process' setting counts, which ``dynzoo train`` sets). A
    kernel of another type is then rounded to it: in bfloat16, entries move by up to 1/256 of
    themselves, and singular values by some 2e-3.

    Args:
        steps: least effort of a call, at least 1: one round for every two.

    Raises:
        ValueError: if ``steps`` is below 1, or the kernel is not a matrix or a 1x1 convolution.

    Example:

    >>> import keras
    >>> from dynzoo.constraints import Orthonormal
    >>> layer = keras.layers.Dense(8, kernel_constraint=Orthonormal())

    Reference: Björck and Bowie, SIAM J. Numer. Anal. 8 (1971), whose iterations of higher order
    are this series.
    """

    def __init__(self, steps=2):
        self.steps = integer("steps", steps)

    def __call__(self, w):
        w = ops.convert_to_tensor(w)
        self._check(w.shape)
        matrix = _as_matrix(ops.cast(w, "float32"))
        with backend.full_precision():
            matrix = spectral.orthonormalize(matrix, self.steps)
        return ops.cast(ops.reshape(matrix, w.shape), w.dtype)

    def stacked(self, w):
        """The same of each matrix of a stack (count, rows, columns)."""
        with backend.full_precision():
            matrix = spectral.orthonormalize(ops.cast(w, "float32"), self.steps)
        return ops.cast(matrix, w.dtype)

    def nearest(self, kernel: np.ndarray) -> np.ndarray:
        """The exact polar factor, in float64."""
        self._check(kernel.shape)
        matrix = np.asarray(kernel, dtype=np.float64).reshape(-1, kernel.shape[-1])
        return spectral.nearest_orthonormal_float64(matrix).reshape(kernel.shape)

    @staticmethod
    def _check(shape):
        if len(shape) < 2 or any(side != 1 for side in shape[:-2]):
            raise ValueError(
                "`Orthonormal` applies to matrices and 1x1 convolution kernels. "
                f"Received: a kernel of shape {tuple(shape)}"
            )

    def get_config(self):
        return {"steps": self.steps}


def project(model) -> None:
    """Imposes every weight constraint of a model (or layer) now, in place.

    Keras applies constraints only to trainable variables inside an optimizer update. Call this
    after ``set_weights``, ``load_weights``, weight averaging, or a custom training loop. dynzoo's
    own constraints are imposed by a float64 SVD, others by calling them.

    Args:
        model: a built ``keras.Model`` or ``keras.Layer``.

    Raises:
        ValueError: if a constrained weight is not finite (nothing is changed then).

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import dynzoo
    >>> from dynzoo.constraints import Orthonormal
    >>> layer = keras.layers.Dense(8, kernel_constraint=Orthonormal())
    >>> model = keras.Sequential([keras.Input((4,)), layer])
    >>> model.set_weights([2.0 * w for w in model.get_weights()])
    >>> dynzoo.project(model)
    >>> bool(np.linalg.norm(layer.kernel, 2) < 1.0 + 1e-5)
    True
    """
    constrained = [v for v in model.variables if getattr(v, "constraint", None) is not None]
    values = []
    for variable in constrained:
        value = np.asarray(ops.convert_to_numpy(ops.cast(variable.value, "float32")))
        if not np.isfinite(value).all():
            raise ValueError(
                f"`model` has a weight that is not finite: {variable.path}. "
                "Load a good checkpoint before projecting."
            )
        values.append(value)
    for variable, value in zip(constrained, values, strict=True):
        if hasattr(variable.constraint, "nearest"):
            variable.assign(variable.constraint.nearest(value).astype("float32"))
        else:
            variable.assign(variable.constraint(variable.value))


class UnmetConstraintWarning(UserWarning):
    """A model was trained, and its weights are not what their constraints ask for."""


def unmet(model, tolerance: float = _UNMET) -> dict[str, float]:
    r"""The weights of a model that are off their constraint, and how far.

    $\|W - P(W)\|_F \,/\, (\|P(W)\|_F / \sqrt{r})$ with P what ``project`` would do and r the
    shorter side of the matrix: for orthonormal kernels at least $\max_i |\sigma_i(W) - 1|$.

    Args:
        model: a built ``keras.Model`` or ``keras.Layer``.
        tolerance: what may be off, relative. Training leaves 1e-5 of a singular value.

    Returns:
        path of the weight -> how far it is off; infinite for a weight that is not finite.

    Example:

    >>> import keras
    >>> import dynzoo
    >>> from dynzoo.constraints import Orthonormal, unmet
    >>> layer = keras.layers.Dense(8, kernel_constraint=Orthonormal())
    >>> model = keras.Sequential([keras.Input((4,)), layer])
    >>> [path.rpartition("/")[2] for path in unmet(model)]  # as it was drawn
    ['kernel']
    >>> dynzoo.project(model)
    >>> unmet(model)
    {}
    """
    found = {}
    for variable in model.variables:
        constraint = getattr(variable, "constraint", None)
        if constraint is None:
            continue
        value = backend.value_of(variable).astype(np.float64)
        if not np.isfinite(value).all():
            found[variable.path] = math.inf
            continue
        if hasattr(constraint, "nearest"):
            met = constraint.nearest(value)
        else:
            met = backend.to_numpy(constraint(variable.value)).astype(np.float64)
        rank = min(math.prod(value.shape[:-1]), value.shape[-1]) if value.ndim else 1
        size = float(np.linalg.norm(met)) / math.sqrt(max(1, rank))
        off = float(np.linalg.norm(value - met))
        if off > tolerance * size:
            found[variable.path] = off / size if size > 0 else math.inf
    return found


def hint_at_unmet(model, stacklevel: int = 3) -> None:
    """Warns, in one line, of a trained model whose weights are off their constraints.

    A model that was never trained is left alone: its maker may want it as it is.

    Args:
        model: a built ``keras.Model``.
        stacklevel: as in ``warnings.warn``.

    Example:

    >>> import keras
    >>> from dynzoo.constraints import Orthonormal, hint_at_unmet
    >>> layer = keras.layers.Dense(8, kernel_constraint=Orthonormal())
    >>> hint_at_unmet(keras.Sequential([keras.Input((4,)), layer]))  # not trained: no warning
    """
    iterations = getattr(getattr(model, "optimizer", None), "iterations", None)
    if iterations is None or not int(backend.value_of(iterations)):
        return
    found = unmet(model)
    if found:
        path, off = max(found.items(), key=lambda item: item[1])
        warnings.warn(
            f"Weights of the model that do not meet their constraint: {len(found)} ({path} is off "
            f"by {off:.2g}). Its Lipschitz bound counts them as they are. Averages of weights "
            "(`use_ema=True`) leave the constraints: call `dynzoo.project(model)`, or fit with "
            "`dynzoo.constraints.SwapProjectedEMAWeights()`.",
            UnmetConstraintWarning,
            stacklevel=stacklevel,
        )


def projected_at_end(model) -> bool:
    """Whether a callback of this file projects the model when the training that runs now ends.

    Args:
        model: a ``keras.Model``.

    Example:

    >>> import keras
    >>> from dynzoo.constraints import projected_at_end
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> projected_at_end(model)  # nothing trains it now
    False
    """
    return model in _PROJECTED_AT_END


def _project_at_end(model: keras.Model) -> None:
    """Projects what ``fit`` leaves, and makes it fit to go on."""
    project(model)
    backend.own_arrays(model.trainable_variables)
    _PROJECTED_AT_END.discard(model)


class ProjectWeights(keras.callbacks.Callback):
    """Calls ``project`` when training ends and, with ``every_epoch``, after each epoch.

    Needed with ``use_ema=True``: the optimizer averages weights from *before* the constraint, and
    writes the averages back unprojected at the end of ``fit`` (with no callback at all, they stay
    so: call ``project``) and at ``ema_overwrite_frequency``. To validate with averaged weights
    during ``fit``, replace Keras' ``SwapEMAWeights`` by ``SwapProjectedEMAWeights``: what Keras'
    swaps in before a validation is not projected, and comes after or before what this callback
    does.

    Args:
        every_epoch: also project after each epoch.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo.constraints import Orthonormal, ProjectWeights, unmet
    >>> layer = keras.layers.Dense(2, kernel_constraint=Orthonormal())
    >>> model = keras.Sequential([keras.Input((4,)), layer])
    >>> model.compile(keras.optimizers.AdamW(use_ema=True), "mse")
    >>> x, y = np.ones((8, 4)), np.ones((8, 2))
    >>> history = model.fit(x, y, verbose=0, callbacks=[ProjectWeights()])
    >>> unmet(model)
    {}
    """

    def __init__(self, every_epoch=False):
        super().__init__()
        self.every_epoch = every_epoch

    def on_train_begin(self, logs=None):
        _PROJECTED_AT_END.add(self.model)

    def on_epoch_end(self, epoch, logs=None):
        if self.every_epoch:
            project(self.model)

    def on_train_end(self, logs=None):
        _project_at_end(self.model)


class SwapProjectedEMAWeights(keras.callbacks.SwapEMAWeights):
    r"""Keras' ``SwapEMAWeights`` with constraints: evaluates projected averages of the weights.

    $$w \leftarrow P(\bar w) \;(\text{before an evaluation}), \qquad w \leftarrow w_{raw}
    \;(\text{after it})$$

    with $\bar w$ the optimizer's moving average and P ``project``. A mean of orthonormal matrices
    is not orthonormal, so that without P a validation sees a model outside its constraints.

    Guarantee: validation, ``evaluate`` and ``predict`` with this callback see projected averages.
    Training goes on from exactly the weights that it left, and the average is not touched. When
    ``fit`` ends, early or not, the model holds the projected averages. With ``swap_on_epoch``,
    other callbacks see them too at the end of an epoch that was validated, in whatever order the
    callbacks stand; without validation, those that stand behind this one do.

    Args:
        swap_on_epoch: keep the projected averages until the next epoch begins, for callbacks such
            as ``ModelCheckpoint``.

    Raises:
        ValueError: if no optimizer of the model has ``use_ema=True``.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo.constraints import Orthonormal, SwapProjectedEMAWeights, unmet
    >>> layer = keras.layers.Dense(2, kernel_constraint=Orthonormal())
    >>> model = keras.Sequential([keras.Input((4,)), layer])
    >>> model.compile(keras.optimizers.AdamW(use_ema=True), "mse")
    >>> x, y = np.ones((8, 4)), np.ones((8, 2))
    >>> swap = SwapProjectedEMAWeights(swap_on_epoch=True)
    >>> history = model.fit(x, y, validation_data=(x, y), verbose=0, callbacks=[swap])
    >>> unmet(model)
    {}
    """

    def __init__(self, swap_on_epoch=False):
        super().__init__(swap_on_epoch)
        self._training = False
        self._raw: list = []
        self._ema_weights_in_model = False

    def _averaged(self):
        """Pairs (weight, its average) of the optimizers that average."""
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        pairs = []
        for one in getattr(optimizer, "optimizers", [optimizer]):
            if getattr(one, "use_ema", False) and hasattr(one, "_model_variables_moving_average"):
                averages = one._model_variables_moving_average
                pairs += list(zip(one._trainable_variables, averages, strict=True))
        if not pairs:
            raise ValueError(
                "`SwapProjectedEMAWeights` needs an optimizer with use_ema=True that has been "
                f"built. Received: optimizer={self.model.optimizer!r}"
            )
        return pairs

    def _swap_in(self):
        if self._ema_weights_in_model:
            return
        pairs = self._averaged()
        # `project` reaches constrained weights that are not trained, too
        frozen = [v for v in self.model.non_trainable_variables if v.constraint is not None]
        self._raw = [(v, backend.value_of(v)) for v in [*(v for v, _ in pairs), *frozen]]
        for variable, average in pairs:
            variable.assign(backend.value_of(average))
        project(self.model)
        self._ema_weights_in_model = True

    def _swap_out(self):
        if self._ema_weights_in_model:
            for variable, value in self._raw:
                variable.assign(value)
            self._raw = []
            self._ema_weights_in_model = False

    def on_train_begin(self, logs=None):
        self._training = True
        _PROJECTED_AT_END.add(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        self._swap_out()

    def on_epoch_end(self, epoch, logs=None):
        if self.swap_on_epoch:
            self._swap_in()

    def on_train_end(self, logs=None):
        # the optimizer has just written its averages into the model
        self._training, self._raw, self._ema_weights_in_model = False, [], False
        _project_at_end(self.model)

    def on_test_begin(self, logs=None):
        self._swap_in()

    def on_test_end(self, logs=None):
        if not (self.swap_on_epoch and self._training):
            self._swap_out()

    def on_predict_begin(self, logs=None):
        self._swap_in()

    def on_predict_end(self, logs=None):
        self._swap_out()
