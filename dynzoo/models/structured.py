"""The five image classifiers of the founding paper, as published and in a certified form."""

from __future__ import annotations

import keras

from dynzoo import constraints, operators
from dynzoo.layers.gradient_flow import GradientFlow
from dynzoo.layers.heads import UnitRowDense
from dynzoo.layers.isometries import ChannelPadding, SpaceToDepth
from dynzoo.layers.learned_scale import LearnedScale
from dynzoo.layers.linear import OrthonormalDense, OrthonormalPointwise, PositionOffset
from dynzoo.layers.switching_flow import SwitchingFlow
from dynzoo.models.arguments import (
    check_classes,
    check_image,
    check_normalization,
    check_widths,
    layer_seeds,
)
from dynzoo.regularizers import Orthogonality
from dynzoo.utils.arguments import integer, number, one_of

__all__ = ["structured_classifier"]

_MEAN = (0.4914, 0.4822, 0.4465)
_DEVIATION = (0.2023, 0.1994, 0.2010)
# Each network with the authors' weight of the orthogonality loss (CIFAR-10, margin 0.07).
_ORTHOGONALITY = {
    "unconstrained": 0.0,
    "naive": 0.01,
    "nonexpansive": 0.1,
    "prescribed": 0.1,
    "flexible": 0.01,
}


def structured_classifier(
    kind="flexible",
    form="certified",
    input_shape=(32, 32, 3),
    num_classes=10,
    widths=(32, 64, 128),
    convolutions=4,
    operator=None,
    bound="paper",
    orthogonality=None,
    mean=_MEAN,
    deviation=_DEVIATION,
    seed=0,
    name=None,
    lifts="convolution",
    block_size=2,
    neck_units=256,
    step_range=None,
    expansion=None,
    expansion_activation=None,
    substeps=None,
    expansion_start=None,
    inner_ratio=1.0,
) -> keras.Model:
    r"""Builds one of the five networks that the founding paper compares on CIFAR.

    Normalisation; then per stage a 3x3 lift to ``widths[k]`` channels, a discretised dynamical
    system, and 2x2 max pooling; then one dense layer. The dynamical systems:

    * ``"unconstrained"``: $x \leftarrow x + B\,relu(Ax + b)$, the usual residual network;
    * ``"naive"``: $x \leftarrow \tfrac12(x + B\,relu(Ax + b))$;
    * ``"nonexpansive"``: $x \leftarrow x - hA^Trelu(Ax + b)$ (``GradientFlow``, h learned);
    * ``"prescribed"`` and ``"flexible"``: ``SwitchingFlow`` in these modes.

    Guarantee (``form="published"``): none for the whole network. Scalars after the lifts and the
    head are free, and the switching flows take their kernels to be orthogonal, which the loss only
    asks for (``orthogonality``). ``dynzoo.certify`` gives the true bound, which is large. Three
    things differ from the authors' code: a negative expansive step of ``"flexible"`` contracts, as
    was meant (the code took its absolute value); the kernels of ``"nonexpansive"`` are held at norm
    1, with h below 2 instead of 1.9; and lifts and head are not divided by their norms, which the
    free scalars can undo.

    Guarantee (``form="certified"``): after the normalisation every layer is 1-Lipschitz, by
    constraints on lifts, scalars ($|s| \le 1$) and head and by the flows themselves, so the
    network's constant is at most $1/\min_c \text{deviation}_c$ up to the constraints' rounding.
    Dynamics run on orthonormal matrices behind a circular shift unless ``operator="conv"``.

    The paper's surroundings of the dynamics lose much of the signal's norm, and so of every
    radius. ``lifts="isometric"`` keeps all of it, and works on fewer pixels: space-to-depth blocks
    and orthonormal maps in place of lifts, ReLU and pooling, a learned offset at each pixel, an
    orthonormal neck with dynamics of its own, and a head with unit rows.

    Args:
        kind: one of the five names above.
        form: ``"published"`` or ``"certified"`` (which the unconstrained network has not).
        input_shape: (height, width, channels) in pixels; height and width divisible by
            ``2 ** len(widths)``.
        num_classes: number of classes, at least 2.
        widths: channels of each stage.
        convolutions: convolutions A in each stage; even for the switching flows, which have two
            a time step (one, used twice, in ``"flexible"``).
        operator: ``"conv"`` (3x3, zero padding), ``"shifted"``, or ``None``: ``"conv"`` in the
            published form, ``"shifted"`` in the certified one.
        bound: ``"paper"`` or ``"sharp"``, that of the switching flows.
        orthogonality: weight of the loss that asks the dynamics' kernels to be orthogonal
            (``dynzoo.regularizers.Orthogonality``), at least 0. ``None``: none in the certified
            form; in the published one that of the authors, 0.1 (0.01 for ``"flexible"`` and
            ``"naive"``, 0 for ``"unconstrained"``), which they set beside a hinge loss that sums
            over the classes: ``MulticlassHinge``, the mean, wants it divided by their number.
        mean: channel means of the normalisation, for images in [0, 1].
        deviation: channel standard deviations, positive.
        seed: integer seed of all initialisers.
        name: name of the model.
        lifts: what surrounds the dynamics: ``"convolution"``, as in the paper, or ``"isometric"``
            (certified form of the three dynamical systems only).
        block_size: side of the first space-to-depth block in pixels (isometric lifts only).
        neck_units: features after the neck (isometric lifts only).
        step_range: interval of the switching flows' contractive time steps, or ``None`` for that of
            ``SwitchingFlow``, which is the paper's. Small steps lose little, and bend little.
        expansion: field of the switching flows' expansive steps, as in ``SwitchingFlow``;
            ``None`` for the paper's. ``"gradient"`` stretches all directions alike, and loses
            less of the signal than the ``"generic"`` one of ``"prescribed"``.
        expansion_activation: its activation, or ``None`` for the paper's. ``"linear"`` stretches
            all directions alike and loses nothing of what the next contraction leaves room for.
        substeps: substeps of each of the switching flows' time steps, or ``None`` for the paper's
            two.
        expansion_start: what their expansive steps start from, as a share of the largest
            admissible one in (0, 1), or ``None`` for that of ``SwitchingFlow``.
        inner_ratio: rows of A, as a share of the channels, in (0, 1]; below 1 for the three
            dynamical systems only, and for switching flows with ``expansion="tied"``. What the
            rows do not reach passes a step as it is.

    Returns:
        A functional ``keras.Model`` from images in [0, 1] to logits.

    Raises:
        ValueError: if an argument is out of its range, naming it.

    Example:

    >>> import dynzoo
    >>> from dynzoo.models import structured_classifier
    >>> model = structured_classifier("flexible", "published", widths=(8,), convolutions=2)
    >>> dynzoo.certify(model).lipschitz > 1.0
    True

    Reference: E. Celledoni et al., "Dynamical systems' based neural networks", SISC 2023
    (arXiv 2210.02373), section of numerical experiments.
    """
    _check_kind(kind, form, lifts, convolutions)
    certified, isometric = form == "certified", lifts == "isometric"
    operator = one_of("operator", operator or ("shifted" if certified else "conv"), _OPERATORS)
    check_classes(num_classes)
    integer("block_size", block_size)
    integer("neck_units", neck_units)
    stages = len(check_widths("widths", widths))
    check_image(input_shape, block_size * 2 ** (stages - 1) if isometric else 2**stages)
    means, variances = check_normalization(mean, deviation, input_shape[-1])
    seeds = layer_seeds(seed, 20)
    if orthogonality is None:
        orthogonality = 0.0 if certified else _ORTHOGONALITY[kind]
    orthogonality = number("orthogonality", orthogonality, closed="both")
    # A weight of zero would cost the regulariser's convolutions for nothing.
    regularizer = Orthogonality(orthogonality) if orthogonality else None

    switching = {
        "step_range": step_range,
        "expansion": expansion,
        "expansion_activation": expansion_activation,
        "substeps": substeps,
        "expansion_start": expansion_start,
    }
    for argument, value in switching.items():
        if value is not None and kind not in ("prescribed", "flexible"):
            raise ValueError(
                f"`{argument}` is for kind='prescribed' and kind='flexible'. "
                f"Received: {argument}={value!r}, kind={kind!r}"
            )
    switching = {name: value for name, value in switching.items() if value is not None}
    switching["bound"] = bound
    inner_ratio = number("inner_ratio", inner_ratio, 0.0, 1.0)
    if inner_ratio < 1 and kind in ("unconstrained", "naive"):
        raise ValueError(
            "`inner_ratio` is for kind='nonexpansive', 'prescribed' and 'flexible'. "
            f"Received: inner_ratio={inner_ratio!r}, kind={kind!r}"
        )

    def flow(operator, width):
        units = max(1, int(inner_ratio * width))
        return _flow(
            kind, operator(units), convolutions, certified, regularizer, next(seeds), switching
        )

    inputs = keras.Input(tuple(input_shape), name="image")
    x = keras.layers.Normalization(mean=means, variance=variances)(inputs)
    if isometric:
        x = _isometric_body(x, widths, _OPERATORS[operator], flow, seeds, block_size, neck_units)
        outputs = UnitRowDense(num_classes, seed=next(seeds), name="head")(x)
    else:
        x = _convolution_body(
            x, widths, _OPERATORS[operator], flow, seeds, kind, certified, convolutions, regularizer
        )
        outputs = keras.layers.Dense(
            num_classes,
            kernel_initializer=keras.initializers.Orthogonal(seed=next(seeds)),
            kernel_constraint=constraints.SpectralNorm() if certified else None,
            name="head",
        )(x)
    return keras.Model(inputs, outputs, name=name or f"structured_{kind}")


def _check_kind(kind, form, lifts, convolutions):
    """Which network, and what not every one of them has."""
    one_of("kind", kind, _ORTHOGONALITY)
    one_of("form", form, ("published", "certified"))
    if form == "certified" and kind == "unconstrained":
        raise ValueError("`form` must be 'published' for kind='unconstrained', which has no bound.")
    integer("convolutions", convolutions)
    if kind in ("prescribed", "flexible") and convolutions % 2:
        raise ValueError(
            f"`convolutions` must be even for kind={kind!r}. Received: convolutions={convolutions}"
        )
    one_of("lifts", lifts, ("convolution", "isometric"))
    if lifts == "isometric" and (form == "published" or kind == "naive"):
        raise ValueError(
            "`lifts` must be 'convolution' for form='published' and for kind='naive'. "
            f"Received: lifts='isometric', form={form!r}, kind={kind!r}"
        )


def _isometric_body(x, widths, operator, flow, seeds, block_size, neck_units):
    """The dynamics between maps that keep the norm, down to the features of the neck."""
    for stage, width in enumerate(widths):
        x = SpaceToDepth(2 if stage else block_size)(x)
        if stage == 0 and x.shape[-1] <= width:
            x = ChannelPadding(width)(x)
        else:
            x = OrthonormalPointwise(width, seed=next(seeds))(x)
        if stage == 0:
            x = PositionOffset()(x)
        x = flow(operator, width)(x)
    x = OrthonormalDense(neck_units, seed=next(seeds), name="neck")(keras.layers.Flatten()(x))
    return flow(operators.Dense, neck_units)(x)


def _convolution_body(x, widths, operator, flow, seeds, kind, certified, convolutions, regularizer):
    """The paper's stages: a 3x3 lift, the dynamics, 2x2 max pooling; flattened at the end."""
    residual = kind in ("unconstrained", "naive")
    # An isometry added to the identity doubles the signal in each of the unconstrained steps.
    initial = _small_uniform if kind == "unconstrained" else operators.DeltaOrthonormal

    def convolution(x, width, use_bias, activation=None, kernel_regularizer=None):
        spatial = tuple(x.shape[1:3])
        return keras.layers.Conv2D(
            width,
            3,
            padding="same",
            use_bias=use_bias,
            activation=activation,
            kernel_initializer=initial(seed=next(seeds)),
            kernel_constraint=constraints.SpectralNorm(spatial=spatial) if certified else None,
            kernel_regularizer=kernel_regularizer,
        )(x)

    for width in widths:
        x = convolution(x, width, use_bias=residual)
        if residual:
            for _ in range(convolutions):
                y = convolution(x, width, True, "relu", regularizer)
                y = convolution(y, width, False, None, regularizer)
                x = keras.layers.Add()([x, y])
                if kind == "naive":
                    x = keras.layers.Rescaling(0.5)(x)
        else:
            x = keras.layers.ReLU()(LearnedScale(1.0 if certified else None)(x))
            x = flow(operator, width)(x)
        x = keras.layers.MaxPooling2D(2)(x)
    return keras.layers.Flatten()(x)


_OPERATORS = {"conv": operators.Conv, "shifted": operators.ShiftedPointwise}


def _small_uniform(seed):
    """Uniform in +-1/sqrt(fan_in), what the unconstrained network started from."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=seed)


def _flow(kind, operator, convolutions, certified, regularizer, seed, switching):
    """The dynamics of one stage."""
    common = {"kernel_regularizer": regularizer, "seed": seed}
    if kind == "nonexpansive":
        return GradientFlow(operator, step_size="learned", steps=convolutions, **common)
    if not certified:
        common.update(spectrum="assumed", constraint=None)
    return SwitchingFlow(operator, mode=kind, steps=convolutions // 2, **switching, **common)
