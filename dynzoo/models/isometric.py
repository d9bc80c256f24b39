"""Classifiers whose every layer keeps norms: orthonormal gradient flows on a pixel pyramid."""

from __future__ import annotations

import keras

from dynzoo import layers as dl
from dynzoo import operators
from dynzoo.models.arguments import (
    check_classes,
    check_image,
    check_stages,
    layer_seeds,
)
from dynzoo.utils.arguments import integer, number, one_of

__all__ = ["isometric_classifier"]

# Channel means of the CIFAR-10 training images in [0, 1].
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)


def isometric_classifier(
    input_shape=(32, 32, 3),
    num_classes=10,
    widths=(64, 128, 256),
    steps=(4, 4, 4),
    operator="shifted",
    inner_ratio=0.5,
    shift_fraction=0.5,
    activation="relu",
    mean=_CIFAR10_MEAN,
    block_size=2,
    neck_units=256,
    dense_steps=3,
    constraint="default",
    step_size="maximal",
    between="maxmin",
    head="unit_rows",
    seed=0,
    name=None,
    pooling="none",
    positions="first",
    flow="gradient",
    beta=4.0,
) -> keras.Model:
    r"""Builds a 1-Lipschitz image classifier out of norm-preserving gradient flows.

    Mean shift; space-to-depth; then per stage k an orthonormal map to ``widths[k]`` channels and
    ``steps[k]`` gradient steps $x \leftarrow x - 2A^T\sigma(Ax + b)$ with orthonormal rows, MaxMin
    after each; space-to-depth between stages; an orthonormal neck, ``dense_steps`` dense gradient
    steps, and a head with unit rows. The four arguments before the seed and those after the name
    change what the shipped networks have settled on.

    Guarantee: the body is 1-Lipschitz up to the rounding of its constraints, so the L2 radius
    $\min_j (z_y - z_j)/\|w_y - w_j\|$ is certified; ``dynzoo.certify`` gives the exact number.

    Args:
        input_shape: (height, width, channels) in pixels; height and width divisible by
            ``block_size * 2 ** (len(widths) - 1)``.
        num_classes: number of classes, at least 2.
        widths: channels of each stage.
        steps: gradient steps of each stage.
        operator: ``"shifted"`` (a spatial shift, then a pointwise flow: x stays where the shift
            took it, and the next step shifts back), ``"shifted_pointwise"`` (the shift inside A)
            or ``"conv"`` (3x3, norm-constrained).
        inner_ratio: rows of A over the width, in (0, 1].
        shift_fraction: share of the channels that is shifted, in (0, 1].
        activation: monotone activation inside the steps.
        mean: channel means to subtract, or ``None``.
        block_size: side of the first space-to-depth block in pixels.
        neck_units: features after the neck.
        dense_steps: gradient steps on the neck features.
        constraint: of the kernels A, as in ``GradientFlow``: ``"default"`` (orthonormal rows, or
            norm 1 for ``operator="conv"``), ``"orthonormal"`` or ``"spectral_norm"``.
        step_size: of the gradient steps, in (0, 2]; ``"maximal"`` is 2.
        between: activation after each gradient step: ``"maxmin"``, ``"beta_abs"`` or ``"none"``.
        head: ``"unit_rows"`` or ``"orthonormal"``.
        seed: integer seed of all initialisers.
        name: name of the model.
        pooling: of the last stage before the neck: ``"none"`` (the neck sees every pixel) or
            ``"l2"`` (the norm of each channel over all pixels).
        positions: which stages begin with a learned offset for each pixel and channel:
            ``"first"`` or ``"every"``.
        flow: what each step solves: ``"gradient"`` (explicit Euler), ``"implicit"`` (the resolvent
            of the same gradient, for which any positive ``step_size`` is allowed; with orthonormal
            rows it is an explicit step, so choose another ``constraint``) or ``"softmax"``
            (the gradient of a log-sum-exp over ``inner_ratio`` times as many keys as channels;
            ``operator="shifted"`` only, ``step_size`` up to 4 / ``beta``). The last two keep no
            norms: 1-Lipschitz steps, but not orthogonal Jacobians.
        beta: inverse temperature of the softmax flow, positive.

    Returns:
        A functional ``keras.Model`` from images in [0, 1] to logits.

    Raises:
        ValueError: if an argument is out of its range, naming it.

    Example:

    >>> import dynzoo
    >>> from dynzoo.models import isometric_classifier
    >>> model = isometric_classifier(widths=(16,), steps=(1,), neck_units=16, dense_steps=1)
    >>> dynzoo.certify(model).body_lipschitz < 1.0 + 1e-4
    True
    """
    check_stages(widths, steps)
    check_classes(num_classes)
    integer("block_size", block_size)
    integer("neck_units", neck_units)
    integer("dense_steps", dense_steps, least=0)
    number("shift_fraction", shift_fraction, 0.0, 1.0)
    check_image(input_shape, block_size * 2 ** (len(widths) - 1))
    _check_choices(operator, inner_ratio, constraint, between, head, pooling, positions)
    _check_flow(flow, operator, step_size, constraint)
    seeds = layer_seeds(seed)

    def inner(width):
        return max(1, int(width * inner_ratio))

    def step(op):
        own = {"step_size": step_size, "seed": next(seeds)}
        if flow == "softmax":
            return dl.SoftmaxGradientFlow(op.units, beta=beta, **own)
        kind = dl.GradientFlow if flow == "gradient" else dl.ImplicitGradientFlow
        return kind(op, activation=activation, constraint=constraint, **own)

    def activated(x):
        if between == "none":
            return x
        return (dl.MaxMin() if between == "maxmin" else dl.BetaAbs())(x)

    inputs = keras.Input(tuple(input_shape), name="image")
    x = inputs
    if mean is not None:
        x = dl.MeanShift(mean)(x)
    for stage, (width, count) in enumerate(zip(widths, steps, strict=True)):
        x = dl.SpaceToDepth(block_size if stage == 0 else 2)(x)
        if stage == 0 and x.shape[-1] <= width:
            x = dl.ChannelPadding(width)(x)
        else:
            x = dl.OrthonormalPointwise(width, seed=next(seeds))(x)
        if stage == 0 or positions == "every":
            x = dl.PositionOffset()(x)
        for i in range(count):
            if operator == "shifted":
                if i == 0:
                    x = dl.SpatialShift(fraction=shift_fraction)(x)
                x = step(operators.Pointwise(inner(width)))(x)
                if i + 1 < count:
                    shift = {"reverse": i % 2 == 0, "fraction": shift_fraction}
                    if between == "maxmin":
                        x = dl.MaxMinShift(**shift)(x)
                    else:
                        x = dl.SpatialShift(**shift)(activated(x))
                    continue
            elif operator == "shifted_pointwise":
                x = step(operators.ShiftedPointwise(inner(width), fraction=shift_fraction))(x)
            else:
                x = step(operators.Conv(inner(width)))(x)
            x = activated(x)
    if pooling == "l2":
        x = dl.L2Pooling2D()(x)
    x = keras.layers.Flatten()(x)
    x = dl.OrthonormalDense(neck_units, seed=next(seeds), name="neck")(x)
    for _ in range(dense_steps):
        x = activated(step(operators.Dense(inner(neck_units)))(x))
    if head == "unit_rows":
        outputs = dl.UnitRowDense(num_classes, seed=next(seeds), name="head")(x)
    else:
        outputs = dl.OrthonormalDense(num_classes, use_bias=True, seed=next(seeds), name="head")(x)
    return keras.Model(inputs, outputs, name=name or "isometric")


def _check_choices(operator, inner_ratio, constraint, between, head, pooling, positions):
    """What is chosen among a few words, and the share of rows."""
    if operator not in ("shifted", "shifted_pointwise", "conv"):
        raise ValueError(
            "`operator` must be 'shifted', 'shifted_pointwise' or 'conv'. "
            f"Received: operator={operator!r}"
        )
    number("inner_ratio", inner_ratio, 0.0, 1.0)
    one_of("constraint", constraint, ("default", "orthonormal", "spectral_norm"))
    one_of("between", between, ("maxmin", "beta_abs", "none"))
    one_of("head", head, ("unit_rows", "orthonormal"))
    one_of("pooling", pooling, ("none", "l2"))
    one_of("positions", positions, ("first", "every"))


def _check_flow(flow, operator, step_size, constraint):
    """Which steps, and what they have no use for."""
    one_of("flow", flow, ("gradient", "implicit", "softmax"))
    if flow == "implicit" and step_size == "maximal":
        raise ValueError(
            "`step_size` must be a positive number for flow='implicit', which has no largest one. "
            "Received: step_size='maximal'"
        )
    if flow == "softmax" and operator != "shifted":
        raise ValueError(
            f"`operator` must be 'shifted' for flow='softmax'. Received: operator={operator!r}"
        )
    if flow == "softmax" and constraint == "orthonormal":
        raise ValueError(
            "`constraint` must be 'default' or 'spectral_norm' for flow='softmax', whose keys have "
            "a norm of at most 1. Received: constraint='orthonormal'"
        )
