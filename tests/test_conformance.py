"""What every layer, constraint, attack, data set, ... must be, by being in its table.

A new layer is a row of `LAYERS` and passes `dynzoo.testing.check_layer`, which users run on theirs.
"""

import inspect
import json

import keras
import numpy as np
import pytest
from helpers import conv_matrix, normal
from helpers import norm as largest_singular_value
from keras import ops

import dynzoo
from dynzoo import backend, constraints, layers, operators, regularizers
from dynzoo.attacks import ATTACKS, Attack, Transfer
from dynzoo.data import DATASETS, datasets
from dynzoo.models import ARCHITECTURES
from dynzoo.testing import check_layer
from dynzoo.training.builders import LOSSES, OPTIMIZERS

VECTOR, IMAGE = (6,), (3, 3, 4)
PATH = [[0.0, 1.0, 0.0], [1.0, 0.0, 2.0], [0.0, 2.0, 0.0]]
MATRIX = [[2.0, 0.5, 0.0, 0.0], [0.5, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 3.0]]
dense, pointwise = operators.Dense, operators.Pointwise
shifted = operators.ShiftedPointwise(3, "zero", 0.75)
flow = {"steps": 2, "shared": True, "seed": 7}
started = {
    "kernel_initializer": keras.initializers.HeNormal(3),
    "kernel_regularizer": keras.regularizers.L2(0.01),
}
constrained = {**started, "kernel_constraint": keras.constraints.MaxNorm(0.8)}

# name -> (class, arguments, shape of one example): every argument has another value than its
# default in some row.
LAYERS = {
    "gradient": (layers.GradientFlow, {"operator": dense(5), "seed": 1}, VECTOR),
    "gradient_conv": (
        layers.GradientFlow,
        {"operator": operators.Conv(2), "step_size": "learned", "steps": 2, "activation": "tanh"},
        IMAGE,
    ),
    "gradient_expansive": (
        layers.GradientFlow,
        {"operator": dense(4), "direction": "expansive", "step_size": 0.5, "integrator": "rk4"},
        VECTOR,
    ),
    "gradient_full": (
        layers.GradientFlow,
        {
            "operator": shifted, "activation": "leaky_relu", "step_size": 0.7, "integrator": "heun",
            "constraint": "spectral_norm", "max_norm": 0.9, "max_step": 0.4, "projection_steps": 5,
            "kernel_regularizer": keras.regularizers.L2(0.01),
            "kernel_initializer": keras.initializers.HeNormal(3), "use_bias": False, **flow,
        },
        IMAGE,
    ),
    "implicit": (layers.ImplicitGradientFlow, {"operator": dense(5), "seed": 1}, VECTOR),
    "implicit_conv": (
        layers.ImplicitGradientFlow,
        {"operator": operators.Conv(2), "step_size": 40.0, "iterations": 3, "activation": "tanh"},
        IMAGE,
    ),
    "implicit_full": (
        layers.ImplicitGradientFlow,
        {
            "operator": shifted, "activation": "leaky_relu", "step_size": "learned",
            "iterations": 2, "constraint": "spectral_norm", "max_norm": 0.9, "max_step": 4.0,
            "projection_steps": 5, "kernel_regularizer": keras.regularizers.L2(0.01),
            "use_bias": False, **flow,
        },
        IMAGE,
    ),
    "softmax": (layers.SoftmaxGradientFlow, {"keys": 5, "seed": 1}, VECTOR),
    "softmax_tokens": (layers.SoftmaxGradientFlow, {"keys": 3, "beta": 4.0, "steps": 2}, (3, 4)),
    "softmax_full": (
        layers.SoftmaxGradientFlow,
        {
            "keys": 6, "beta": 0.5, "step_size": "learned", "max_norm": 0.9, "use_bias": False,
            **started, **flow,
        },
        IMAGE,
    ),
    "switching": (layers.SwitchingFlow, {"operator": dense(6), "mode": "prescribed"}, VECTOR),
    "switching_conv": (
        layers.SwitchingFlow,
        {"operator": operators.Conv(4), "mode": "sharp", "seed": 1},
        IMAGE,
    ),
    "switching_full": (
        layers.SwitchingFlow,
        {
            "operator": operators.ShiftedPointwise(4), "activation": "leaky_relu",
            "mode": "flexible", "bound": "sharp", "expansion": "gradient",
            "expansion_activation": "tanh", "substeps": 3, "step_size": 0.9,
            "step_range": [0.2, 1.1], "max_expansion": 2.5, "expansion_start": 0.7,
            "constraint": "spectral_norm", "spectrum": "assumed",
            "projection_steps": 4, "use_bias": False, **started, **flow,
        },
        IMAGE,
    ),
    "spherical": (layers.SphericalFlow, {"operator": dense(5), "integrator": "cayley"}, VECTOR),
    "spherical_full": (
        layers.SphericalFlow,
        {
            "operator": shifted, "integrator": "cayley_midpoint", "activation": "softsign",
            "planes": 3, "step_size": "learned", "max_step": 0.4, **constrained, **flow,
        },
        IMAGE,
    ),
    "presnov": (layers.PresnovFlow, {"operator": dense(5), "seed": 1}, VECTOR),
    "presnov_full": (
        layers.PresnovFlow,
        {
            "operator": pointwise(3), "integrator": "relaxed_heun", "gradient_integrator": "rk4",
            "splitting": "strang", "activation": "softplus", "planes": 3, "step_size": "learned",
            "max_step": 0.4, **constrained, **flow,
        },
        IMAGE,
    ),
    "first_integral": (
        layers.FirstIntegralFlow,
        {"operator": dense(5), "integral": "convex", "step_size": 0.2},
        VECTOR,
    ),
    "first_integral_full": (
        layers.FirstIntegralFlow,
        {
            "operator": pointwise(3), "integral": "convex", "matrix": MATRIX,
            "vector": [0.0, 1.0, -1.0, 0.5], "integral_units": 2, "integrator": "projected_heun",
            "iterations": 3, "activation": "softsign", "planes": 3, "step_size": 0.1,
            "max_step": 0.4, **constrained, **flow,
        },
        IMAGE,
    ),
    "mass": (layers.MassPreservingFlow, {"operator": dense(5), "seed": 1}, VECTOR),
    "mass_full": (
        layers.MassPreservingFlow,
        {
            "operator": pointwise(3), "weights": [1.0, 2.0, 0.5, 3.0], "integrator": "ssp3",
            "activation": "softsign", "planes": 3, "step_size": "learned", "max_step": 0.4,
            **constrained, **flow,
        },
        IMAGE,
    ),
    "hamiltonian": (layers.HamiltonianFlow, {"operator": dense(4), "constraint": None}, VECTOR),
    "hamiltonian_full": (
        layers.HamiltonianFlow,
        {
            "operator": shifted, "activation": "softplus", "hamiltonian": "joint",
            "integrator": "implicit_midpoint", "step_size": "learned", "max_norm": 0.9,
            "max_step": 0.4, "constraint": "spectral_norm", "iterations": 3, "use_bias": False,
            **started, **flow,
        },
        IMAGE,
    ),
    "contractive": (layers.ContractiveHamiltonianFlow, {"operator": dense(4), "seed": 1}, VECTOR),
    "contractive_full": (
        layers.ContractiveHamiltonianFlow,
        {
            "operator": shifted, "activation": "softplus", "kappa": 0.8, "bound": "paper_mnist",
            "margin": 0.3, "step_size": "learned", "integrator": "implicit_midpoint",
            "iterations": 3, "max_norm": 0.9, "max_step": 0.4, "use_bias": False,
            **started, **flow,
        },
        IMAGE,
    ),
    "volume": (layers.VolumePreservingFlow, {"operator": dense(3), "steps": 2}, VECTOR),
    "volume_full": (
        layers.VolumePreservingFlow,
        {
            "operator": operators.ShiftedPointwise(2, "zero", 0.75), "activation": "softplus",
            "integrator": "leapfrog", "second_order": True, "step_size": "learned",
            "max_norm": 0.9, "max_step": 0.4, "constraint": None, "use_bias": False,
            **started, **flow,
        },
        IMAGE,
    ),
    "convection": (layers.ConvectionDiffusionFlow, {"operator": dense(4), "seed": 1}, VECTOR),
    "convection_mean": (
        layers.ConvectionDiffusionFlow,
        {"operator": pointwise(3), "sigma": 0.3, "inference": "mean", "samples": 2, "seed": 1},
        IMAGE,
    ),
    "convection_full": (
        layers.ConvectionDiffusionFlow,
        {
            "operator": dense(4), "sigma": 0.3, "step_size": 1.5, "velocity": "free",
            "activation": "tanh", "max_norm": 0.9, "noise_scaling": "tensor_std",
            "inference": "random", "samples": 6, "use_bias": False, **started, **flow,
        },
        VECTOR,
    ),
    "graph": (layers.GraphDiffusion, {"sigma2": 0.2, "adjacency": PATH, "steps": 2}, (3, 2)),
    "graph_full": (
        layers.GraphDiffusion,
        {
            "sigma2": 0.3, "graph": "knn", "neighbours": 3, "scale_neighbour": 2,
            "normalize": True, "self_loops": True,
        },
        (5, 2),
    ),
    "orthonormal": (layers.OrthonormalDense, {"units": 4, "seed": 1}, (7,)),
    "orthonormal_wide": (layers.OrthonormalDense, {"units": 9, "use_bias": True}, (5,)),
    "orthonormal_pointwise": (
        layers.OrthonormalPointwise,
        {"units": 3, "use_bias": True, "projection_steps": 4, "seed": 2},
        (2, 3, 5),
    ),
    "orthonormal_pointwise_start": (
        layers.OrthonormalPointwise,
        {"units": 3, **started},
        (2, 3, 5),
    ),
    "orthonormal_start": (
        layers.OrthonormalDense,
        {"units": 4, **started},
        (7,),
    ),
    "orthonormal_steps": (layers.OrthonormalDense, {"units": 3, "projection_steps": 4}, (2, 5)),
    "offset": (layers.PositionOffset, {}, (2, 3, 4)),
    "pooling": (layers.ScaledAveragePooling2D, {"pool_size": 3}, (3, 6, 2)),
    "norm_pooling": (layers.L2Pooling2D, {"pool_size": 2}, (4, 6, 2)),
    "norm_pooling_whole": (layers.L2Pooling2D, {}, (3, 4, 2)),
    "head": (layers.UnitRowDense, {"units": 3, "use_bias": False, "seed": 3}, (6,)),
    "head_start": (
        layers.UnitRowDense,
        {"units": 3, **started},
        (6,),
    ),
    "head_bias": (layers.UnitRowDense, {"units": 4}, (6,)),
    "scale": (layers.LearnedScale, {"limit": 0.5}, VECTOR),
    "max_min": (layers.MaxMin, {}, IMAGE),
    "max_min_vector": (layers.MaxMin, {}, (6,)),
    "beta_abs": (layers.BetaAbs, {"beta": 0.25}, IMAGE),
    "beta_abs_all": (layers.BetaAbs, {"beta": 1.0}, (5,)),
    "space_to_depth": (layers.SpaceToDepth, {"block_size": 3}, (3, 6, 2)),
    "channel_padding": (layers.ChannelPadding, {"channels": 10}, (4, 4, 3)),
    "shift": (layers.SpatialShift, {}, (4, 6, 8)),
    "shift_back": (layers.SpatialShift, {"reverse": True, "fraction": 1.0}, (4, 6, 8)),
    "shift_zero": (layers.SpatialShift, {"padding": "zero", "fraction": 0.75}, (4, 6, 8)),
    "max_min_shift": (layers.MaxMinShift, {}, (4, 6, 8)),
    "max_min_shift_back": (layers.MaxMinShift, {"reverse": True, "fraction": 1.0}, (4, 6, 8)),
    "max_min_shift_zero": (layers.MaxMinShift, {"padding": "zero", "fraction": 0.25}, (2, 3, 32)),
    "mean_shift": (layers.MeanShift, {"mean": [0.1, 0.5, 0.7]}, (4, 4, 3)),
    "resize": (layers.Resize, {"height": 4, "width": 3, "value_range": [-1.0, 1.0]}, (5, 4, 2)),
    "sum_lift": (layers.SumLift, {"units": 5}, (3,)),
    "sum_projection": (layers.SumProjection, {"units": 2, "weights": [1.0, 2.0, 3.0]}, (3,)),
}  # fmt: skip
# The same of constraints and regularizers, with the shape of a kernel.
CONSTRAINTS = {
    "spectral": (constraints.SpectralNorm, {}, (6, 4)),
    "spectral_pointwise": (
        constraints.SpectralNorm,
        {"max_norm": 0.7, "iterations": 12},
        (1, 1, 3, 5),
    ),
    "spectral_conv": (
        constraints.SpectralNorm,
        {"max_norm": 0.5, "spatial": [4, 5], "padding": "circular"},
        (3, 3, 2, 3),
    ),
    "spectral_any_size": (constraints.SpectralNorm, {"max_norm": 2.0}, (3, 3, 1, 2)),
    "orthonormal": (constraints.Orthonormal, {}, (3, 4)),
    "orthonormal_pointwise": (constraints.Orthonormal, {"steps": 5}, (1, 1, 5, 3)),
}
REGULARIZERS = {
    "orthogonality": (regularizers.Orthogonality, {}, (3, 3, 3, 2)),
    "orthogonality_matrix": (regularizers.Orthogonality, {"gamma": 0.3}, (4, 6)),
}


def classes_of(module, kind=object):
    found = {c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, kind)}
    return {c for c in found if c.__module__.startswith("dynzoo.")}


PUBLIC = classes_of(layers)
TABLES = [
    (PUBLIC, LAYERS),
    (classes_of(constraints, keras.constraints.Constraint), CONSTRAINTS),
    (classes_of(regularizers, keras.regularizers.Regularizer), REGULARIZERS),
]
ALWAYS = ["config", "shapes", "dtypes", "saving", "guarantees", "certificate"]


def arguments_of(cls):
    return {
        n: p for n, p in inspect.signature(cls).parameters.items() if n not in ("args", "kwargs")
    }


@pytest.mark.parametrize(("public", "table"), TABLES, ids=["layers", "constraints", "regularizers"])
def test_every_class_is_in_the_table_with_every_argument_varied(public, table):
    assert public == {cls for cls, _, _ in table.values()}
    for cls in public:
        given = [arguments for c, arguments, _ in table.values() if c is cls]
        for name, parameter in arguments_of(cls).items():
            assert any(a.get(name, parameter.default) != parameter.default for a in given), (
                cls.__name__,
                name,
            )


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    cls, arguments, shape = LAYERS[name]
    layer = cls(**arguments)
    assert keras.saving.get_registered_name(cls) == f"dynzoo>{cls.__name__}"
    config = layer.get_config()
    made_of = operators.Operator | keras.regularizers.Regularizer | keras.initializers.Initializer
    made_of |= keras.constraints.Constraint
    for key, value in arguments.items():
        if not isinstance(value, made_of):
            assert config[key] == value, key
    made = check_layer(layer, shape)
    random = name == "convection_full"
    assert set(ALWAYS) <= set(made)
    assert random or "batch sizes" in made and "float64 twin" in made
    assert random or backend.name() == "torch" or "compilation" in made
    bound = hasattr(cls, "lipschitz_bound") and name not in ("convection_full", "graph_full")
    assert ("lipschitz bound" in made) == bound
    assert not layer.built


def refused(make, name):
    """Whether a wrong value of an argument is refused in one line that names it."""
    with pytest.raises(ValueError) as error:
        make(name)
    text = str(error.value)
    assert f"`{name}`" in text and "Received: " in text and "\n" not in text, text


@pytest.mark.parametrize(
    "cls",
    sorted(set.union(*(public for public, _ in TABLES)), key=lambda c: c.__name__),
    ids=lambda cls: cls.__name__,
)
def test_wrong_arguments_are_named(cls):
    arguments = next(a for _, t in TABLES for c, a, _ in t.values() if c is cls)
    for name, parameter in arguments_of(cls).items():
        keras_own = name in ("kernel_initializer", "kernel_regularizer")  # refused in its words
        if not isinstance(parameter.default, bool) and not keras_own:
            refused(lambda name: cls(**{**arguments, name: object()}), name)


# --- constraints and regularizers --------------------------------------------------------------


def stored_again(made, arguments):
    """What JSON keeps of it, made again: the same class, config and attributes."""
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(made), allow_nan=False))
    assert stored["registered_name"] == f"dynzoo>{type(made).__name__}"
    again = keras.saving.deserialize_keras_object(stored)
    assert type(again) is type(made) and vars(again) == vars(made)
    config = again.get_config()
    assert config == made.get_config() and set(config) == set(arguments_of(type(made)))
    for key, value in arguments.items():
        assert config[key] == (tuple(value) if isinstance(value, list) else value), key
    return again


def layer_with(shape, **arguments):
    """A model of one Keras layer whose kernel has this shape."""
    if len(shape) == 2:
        return keras.Sequential([keras.Input(shape[:1]), keras.layers.Dense(shape[1], **arguments)])
    conv = keras.layers.Conv2D(shape[3], shape[:2], padding="same", **arguments)
    return keras.Sequential([keras.Input((4, 5, shape[2])), conv])


def operator_norm(constraint, kernel):
    if kernel.ndim == 2 or kernel.shape[:2] == (1, 1):
        return largest_singular_value(kernel.reshape(-1, kernel.shape[-1]))
    return largest_singular_value(
        conv_matrix(kernel, constraint.spatial or (5, 5), constraint.padding)
    )


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraint(name, tmp_path):
    cls, arguments, shape = CONSTRAINTS[name]
    constraint, limit = cls(**arguments), arguments.get("max_norm", 1.0)
    stored_again(constraint, arguments)
    compiled = backend.jit(constraint)
    for scale in (0.0, 0.05, 3.0, 1e25):
        kernel = normal(shape, 6, scale)
        after = constraint(ops.convert_to_tensor(kernel))
        assert keras.backend.standardize_dtype(after.dtype) == "float32"
        twice, after = backend.to_numpy(constraint(after)), backend.to_numpy(after)
        assert after.shape == shape and np.isfinite(after).all()
        exact = constraint.nearest(kernel)
        assert exact.dtype == np.float64 and exact.shape == shape
        for found in (after, exact):
            assert operator_norm(constraint, found) <= limit * (1 + 1e-5)
        same = backend.to_numpy(compiled(ops.convert_to_tensor(kernel)))
        np.testing.assert_allclose(same, after, atol=1e-6)
        np.testing.assert_allclose(twice, after, atol=1e-5)
        np.testing.assert_allclose(constraint.nearest(exact), exact, atol=1e-12)
    half = constraint(ops.cast(normal(shape, 7, 5.0), "bfloat16"))
    assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"
    half = backend.to_numpy(ops.cast(half, "float32"))
    assert operator_norm(constraint, half) <= 1.01 * limit
    model = layer_with(shape, kernel_constraint=constraint)
    model.set_weights([normal(shape, 8, 3.0), np.zeros(shape[-1])])
    dynzoo.project(model)
    kernel = model.get_weights()[0]
    assert operator_norm(constraint, kernel) <= limit * (1 + 1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert vars(again.layers[-1].kernel_constraint) == vars(constraint)
    np.testing.assert_array_equal(again.get_weights()[0], kernel)
    for wrong in (np.ones(3), np.ones((3, 2, 2))):  # the kernel of a Conv1D: no matrix
        for use in (constraint, constraint.nearest):
            with pytest.raises(ValueError) as error:
                use(wrong)
            text = str(error.value)
            assert text.startswith(f"`{cls.__name__}` applies to ") and "\n" not in text
            assert text.endswith(f"Received: a kernel of shape {wrong.shape}")


@pytest.mark.parametrize("name", REGULARIZERS)
def test_regularizer(name, tmp_path):
    cls, arguments, shape = REGULARIZERS[name]
    regularizer = cls(**arguments)
    stored_again(regularizer, arguments)
    run = backend.value_and_grad(lambda kernel: regularizer(kernel))
    for scale in (0.0, 0.3, 3.0):
        kernel = ops.convert_to_tensor(normal(shape, 6, scale))
        (value, _), gradient = run(kernel)
        value, gradient = backend.to_numpy(value), backend.to_numpy(gradient)
        assert value.shape == () and value.dtype == np.float32 and 0 <= value < np.inf
        assert gradient.shape == shape and np.isfinite(gradient).all()
        same = backend.to_numpy(backend.jit(regularizer)(kernel))
        np.testing.assert_allclose(same, value, rtol=1e-5)
    half = regularizer(ops.cast(normal(shape, 6), "bfloat16"))
    full = backend.to_numpy(regularizer(ops.convert_to_tensor(normal(shape, 6))))
    np.testing.assert_allclose(backend.to_numpy(ops.cast(half, "float32")), full, rtol=0.05)
    model = layer_with(shape, kernel_regularizer=regularizer)
    expected = backend.to_numpy(regularizer(model.layers[-1].kernel))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert vars(again.layers[-1].kernel_regularizer) == vars(regularizer)
    np.testing.assert_allclose(backend.to_numpy(sum(again.losses)), expected, rtol=1e-6)


# --- attacks -----------------------------------------------------------------------------------

FEW = {"steps": 4, "queries": 20, "draws": 5, "targets": 2}


def short(attack):
    """The attack with few steps: what holds of it does not depend on their number."""
    config = attack.get_config()
    made = type(attack)(**{**config, **{k: v for k, v in FEW.items() if k in config}})
    if hasattr(attack, "members"):
        made.members = lambda *_: [short(member) for member in attack.members()]
    return made


@pytest.fixture(scope="module")
def target():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(4))
    x = np.random.default_rng(0).uniform(size=(7, 4, 4, 1)).astype("float32")
    return model, x, np.argmax(backend.to_numpy(model(x)), axis=1)


def test_every_attack_is_in_the_table():
    kinds = {c for c in vars(dynzoo.attacks).values() if inspect.isclass(c)}
    kinds = {c for c in kinds if issubclass(c, Attack)}
    made = {type(make()) for make in ATTACKS.values()}
    assert kinds - {Attack, Transfer} == made


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name, target):
    model, x, y = target
    for norm in ("l2",) if name == "ddn" else ("l2", "linf"):
        attack = short(ATTACKS[name](norm=norm, eps=0.3, seed=3))
        stored = json.loads(json.dumps(attack.get_config(), allow_nan=False))
        assert repr(type(attack)(**stored)) == repr(attack)
        assert attack.at(0.1).eps == 0.1 and type(attack.at(0.1)) is type(attack)
        assert set(arguments_of(type(attack))) == set(stored)
        assert attack.cost() >= 1 and not (attack.uses_gradients and attack.black_box)
        moved = attack(model, x, y)
        assert moved.dtype == np.float32 and moved.shape == x.shape
        assert moved.min() >= 0 and moved.max() <= 1
        change = (moved.astype(np.float64) - x).reshape(len(x), -1)
        order = 2 if norm == "l2" else np.inf
        assert np.linalg.norm(change, order, axis=1).max() <= 0.3 * (1 + 1e-6)
        smaller = short(ATTACKS[name](norm=norm, eps=0.3, seed=3, batch_size=3))
        np.testing.assert_allclose(smaller(model, x, y), moved, atol=1e-5)


@pytest.mark.parametrize("name", ATTACKS)
def test_wrong_arguments_of_an_attack_are_named(name):
    made = ATTACKS[name]()
    for argument, parameter in arguments_of(type(made)).items():
        if not isinstance(parameter.default, bool):
            refused(lambda n: type(made)(**{**made.get_config(), n: object()}), argument)


# --- data sets, losses, optimizers, architectures ----------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_dataset(name, monkeypatch, tmp_path):
    entry = DATASETS[name]
    assert dynzoo.data.class_names(name) == list(entry.classes) and len(entry.classes) > 1
    assert len(set(entry.classes)) == len(entry.classes) and entry.about
    with pytest.raises(ValueError, match=f"'{name}'.*Received: name='nothing'"):
        dynzoo.data.load("nothing")
    with pytest.raises(ValueError, match="`dtype` must be .*Received: dtype='int8'"):
        dynzoo.data.load(name, dtype="int8")
    if entry.url:  # what is not on this machine is refused by name, with what to do
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        monkeypatch.setattr(datasets, "_unreachable", lambda url: f"no network: {url}")
        with pytest.raises(RuntimeError, match=f"'{name}' is not in .*{entry.url}.*Do one of"):
            dynzoo.data.load(name)
        side, classes = 4, len(entry.classes)
        images = np.arange(2 * classes * side * side * 3).reshape(-1, side, side, 3) % 256
        part = images.astype("uint8"), np.arange(2 * classes) % classes
        stored = datasets.Dataset(entry.about, entry.classes, lambda _: (part, part))
        monkeypatch.setitem(DATASETS, name, stored)
    floats, whole = dynzoo.data.load(name), dynzoo.data.load(name, dtype="uint8")
    for (x, y), (raw, same) in zip(floats, whole, strict=True):
        assert x.dtype == np.float32 and raw.dtype == np.uint8 and x.shape == raw.shape
        np.testing.assert_array_equal(x, raw / np.float32(255))
        np.testing.assert_array_equal(y, same)
        assert y.dtype.kind == "i" and y.shape == (len(x),) and x.ndim == 4
        assert set(np.unique(y)) == set(range(len(entry.classes)))


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    loss = LOSSES[name]()
    value = backend.to_numpy(loss(np.array([0, 2]), np.eye(2, 3, dtype="float32")))
    assert np.isfinite(value) and value.shape == ()
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = keras.saving.deserialize_keras_object(stored)
    assert again.get_config() == loss.get_config()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name):
    optimizer = OPTIMIZERS[name](learning_rate=0.01)(0.01)
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer)))
    again = keras.saving.deserialize_keras_object(stored)
    assert again.get_config() == optimizer.get_config()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name):
    model = ARCHITECTURES[name](num_classes=3)
    assert model.output_shape == (None, 3) and model.input_shape[-1] == 3
    config = json.dumps(keras.saving.serialize_keras_object(model))
    assert f'"{model.layers[-1].name}"' in config
