"""What every attack shares: checked arguments, batches of fixed shape, restarts, and the proof
that what is returned lies in the ball and fools the model."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from dynzoo.attacks.geometry import NORMS, enclose
from dynzoo.inference import label_checks
from dynzoo.inference.answers import answers
from dynzoo.inference.batching import batches, fastest
from dynzoo.inference.image_checks import check_unit_range, unit_images, unit_images_or_stream
from dynzoo.inference.passes import mean_logits, noise
from dynzoo.utils.allocator import give_back_freed_memory
from dynzoo.utils.arguments import integer, number, one_of

__all__ = ["Attack"]

# A gradient step costs a forward and a backward pass, about three times a forward pass.
GRADIENT_STEP = 3.0


def check_images(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """``x`` and ``y`` as arrays, or a ValueError that says what is wrong with them."""
    x = unit_images(x)
    return x, label_checks.check_labels(y, len(x))


def check_images_or_stream(x: Any, y: Any) -> tuple[Any, np.ndarray]:
    """As ``check_images``, but images in files stay there until they are indexed."""
    x = unit_images_or_stream(x)
    return x, label_checks.check_labels(y, len(x))


def check_labels(y: np.ndarray, classes: int) -> None:
    """Raise a ValueError if a label is not below the number of logits."""
    label_checks.check_labels(y, classes=classes)


class Attack:
    r"""Search for $x'$ with $\|x' - x\| \le \varepsilon$, $x' \in [0, 1]^d$, that fools a model.

    A subclass implements ``search``. Calling an attack returns float32 points of which each lies in
    the ball and in the box (checked in float64) and which are the best found: a point that fools
    the model in inference mode if there was one, else the one of the highest loss. Images that
    need no attack (already wrong, or already the target class) are returned unchanged. The result
    is a function of the arguments and of each image's index, not of the batch size.

    A point at which a logit is NaN fools the model, whose answer is gone; it reaches no target.

    A model that is random at inference sees fresh noise, a function of the seed, in each pass, and
    is fooled where the mean of its logits over ``dynzoo.inference.passes.JUDGE_DRAWS`` draws is.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        eps: radius of the ball, in units of the pixel range [0, 1], > 0.
        seed: non-negative seed of everything random.
        targeted: if true, ``y`` is the class to reach; else it is the true label.
        restarts: how often images that still resist are attacked, >= 1.
        batch_size: images processed at once, >= 1.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo.attacks import Attack
    >>> class Brighter(Attack):  # tries one point: all pixels up
    ...     def search(self, model, x, y, logits, indices, real, restart):
    ...         return np.clip(x + self.eps, 0.0, 1.0), np.zeros(len(x))
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> Brighter(norm="linf", eps=0.1)(model, x, y).shape
    (5, 4)
    """

    # What an evaluation asks of every attack; a subclass or its constructor says otherwise.
    black_box = False  # does without gradients by its nature
    transferred = False  # looks for its points on another model
    loss = ""  # what its gradient steps climb, one of `ATTACK_LOSSES`
    steps = 0  # gradient steps of one run
    queries = 0  # forward passes of one run beside those of its gradient steps
    targets = 1  # classes that are tried one after another
    eot = 1  # passes through a random model whose logits and gradients are averaged

    def __init__(
        self,
        norm: str = "l2",
        eps: float = 0.5,
        seed: int = 0,
        targeted: bool = False,
        restarts: int = 1,
        batch_size: int = 256,
    ) -> None:
        one_of("norm", norm, NORMS)
        self.norm = norm
        self.eps = number("eps", eps)
        self.seed = integer("seed", seed, least=0)
        self.targeted = bool(targeted)
        self.restarts = integer("restarts", restarts)
        self.batch_size = integer("batch_size", batch_size)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able: ``type(attack)(**attack.get_config())`` is its copy."""
        names = [p for p in inspect.signature(type(self).__init__).parameters if p != "self"]
        return {name: getattr(self, name) for name in names}

    def at(self, eps: float) -> Attack:
        """Copy of the attack with another radius; a step size that was given scales with it."""
        config = {**self.get_config(), "eps": eps}
        if config.get("step_size") is not None:
            config["step_size"] = config["step_size"] * float(eps) / self.eps
        return type(self)(**config)

    def __repr__(self) -> str:
        config = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({config})"

    def search(
        self,
        model: Any,
        x: np.ndarray,
        y: np.ndarray,
        logits: np.ndarray,
        indices: np.ndarray,
        real: int,
        restart: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One run on one padded batch.

        Args:
            model: the attacked Keras model.
            x: float32 array of shape (batch, ...).
            y: int64 array of shape (batch,): labels or targets.
            logits: float32 array of shape (batch, classes): logits of the clean images.
            indices: int64 array of shape (batch,): key of each image's random numbers.
            real: only the first ``real`` rows are images; the rest is padding.
            restart: number of the run, from 0.

        Returns:
            Points of shape (batch, ...) and the loss of each, of shape (batch,).
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `search`.")

    def check_classes(self, classes: int) -> None:
        """Raise a ValueError if the attack is not defined for this number of classes."""

    @property
    def uses_gradients(self) -> bool:
        """Whether it follows gradients of the attacked model."""
        return self.steps > 0 and not (self.black_box or self.transferred)

    def cost(self) -> float:
        """Forward passes that an image which resists takes, roughly."""
        passes = max(GRADIENT_STEP * self.steps + self.queries, 1.0)
        return passes * self.restarts * self.targets * self.eot

    def runs(self, classes: int) -> int:
        """How often images that still resist are attacked, for this number of classes."""
        return self.restarts

    def rows_at_once(self, x: np.ndarray) -> int:
        """Length of the batches that images like these are searched in."""
        return fastest(self.batch_size, x.shape[1:])

    def fooled(self, logits: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Which rows of logits are a success of the attack. Shape (n,), bool.

        A row with NaN answers nothing: the label is lost there, and a target is not reached.
        """
        hit = answers(logits) == y
        return hit if self.targeted else ~hit

    def __call__(self, model: Any, x: Any, y: Any, indices: np.ndarray | None = None) -> np.ndarray:
        """Attack images.

        Args:
            model: built Keras model that maps a batch of images to logits.
            x: array of shape (n, ...) with values in [0, 1].
            y: integer array of shape (n,) or (n, 1), or one-hot rows: true labels, or targets if
                ``targeted``.
            indices: integer array of shape (n,) that keys each image's random numbers; 0 to n-1
                by default. A caller that attacks a part of a data set passes positions in it.

        Returns:
            Float32 array of the shape of ``x``.

        Raises:
            ValueError: if ``x`` is not finite or not in [0, 1], ``y`` does not fit ``x`` or the
                model, or ``indices`` do not fit ``x``.
        """
        given, y = check_images(x, y)
        check_unit_range(model)
        # The ball is around what the caller gave, float64 included; the model sees float32.
        x = given.astype(np.float32, copy=False)
        indices = keys_of(indices, len(x))
        with noise(model, x, self.batch_size, self.seed):
            return self._attack(model, given, x, y, indices)

    def _attack(
        self, model: Any, given: np.ndarray, x: np.ndarray, y: np.ndarray, indices: np.ndarray
    ) -> np.ndarray:
        clean = mean_logits(model, x, self.batch_size)
        check_labels(y, clean.shape[1])
        self.check_classes(clean.shape[1])
        best = np.array(x, dtype=np.float32)
        best_loss = np.full(len(x), -np.inf)
        open_rows = np.flatnonzero(~self.fooled(clean, y))
        for restart in range(self.runs(clean.shape[1])):
            still = []
            for picks, real in batches(len(open_rows), self.rows_at_once(x)):
                rows = open_rows[picks]
                points, loss = self.search(
                    model, x[rows], y[rows], clean[rows], indices[rows], real, restart
                )
                rows = rows[:real]
                points = enclose(points[:real], given[rows], self.eps, self.norm)
                # The point is judged again after it was drawn into the ball, by a plain forward
                # pass: success claimed by the search alone could be a rounding artefact.
                success = self.fooled(mean_logits(model, points, self.batch_size), y[rows])
                better = success | (loss[:real] > best_loss[rows])
                best[rows[better]] = points[better]
                best_loss[rows[better]] = loss[:real][better]
                still.append(rows[~success])
                give_back_freed_memory()
            if not still:
                break
            open_rows = np.concatenate(still)
        return best


def keys_of(indices: Any, count: int) -> np.ndarray:
    """What keys the random numbers of ``count`` images, 0 to count-1 by default."""
    keys = np.arange(count) if indices is None else np.asarray(indices)
    if keys.shape != (count,) or keys.dtype.kind not in "iu" or (keys < 0).any():
        raise ValueError(
            f"`indices` must be a non-negative integer for each of the {count} images. "
            f"Received: {keys.dtype} of shape {keys.shape}"
        )
    return keys
