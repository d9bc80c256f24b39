"""Passes through a model: compiled, in few shapes, with fresh noise where it is random.

Everything that attacks, certificates and evaluations ask of a model goes through `compiled`.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import keras
import numpy as np
from keras import ops

from dynzoo import backend
from dynzoo.inference.batching import batches, fastest
from dynzoo.inference.draws import Draws, seed_states
from dynzoo.inference.model_layers import flat_layers, random_layers
from dynzoo.inference.recorded import Recorded, can_record, has_hooks, held_tensors
from dynzoo.inference.small_images import with_windows_cut_out

__all__ = [
    "JUDGE_DRAWS",
    "compiled",
    "compiled_function",
    "listening",
    "logits_of",
    "mean_logits",
    "noise",
    "predict_logits",
    "pure",
    "scalar",
    "weights_for",
]

# Compiled functions of each model. Keys are weak, and `backend.inference` holds the model weakly,
# so that deleting a model frees what was compiled for it.
_COMPILED: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
# What gives a random model new noise before each pass, while an attack runs on it.
_NOISE: weakref.WeakKeyDictionary[Any, Callable[[], None]] = weakref.WeakKeyDictionary()
# Number of draws whose mean logits decide whether a point fools a random model.
JUDGE_DRAWS = 16
# Who is told of the passes; the last one counts.
_LISTENERS: list[Callable[[int, bool], None]] = []
# Kinds of compiled functions that differentiate.
_BACKWARD = ("gradient", "gradient-check")
# What Keras keeps of building and training, which no pass at inference looks at.
_NOT_OF_THE_PASS = frozenset(
    ("built", "compiled", "loss", "optimizer", "steps_per_execution", "train_function")
    + ("test_function", "predict_function", "stop_training", "stop_evaluating", "stop_predicting")
)
# Types of attributes that are compared as they are.
_NUMBERS = frozenset((bool, int, float, str, type(None)))
# Keeps the noise of an attack apart from the draws, counted from 0, of a caller with its seed.
_APART = 2**21


def compiled(model: Any, key: Any, make: Callable[[Callable[..., Any]], Any]) -> Callable[..., Any]:
    """Compiled `make(inference)` of a model, traced once per model, key and set of variables.

    `make` gets the pure function `(weights, x) -> outputs` and returns a function whose first
    argument is `weights`; the result takes the other arguments and passes the present weights.
    What was compiled under other settings of the layers is dropped. Under `noise` each call sees
    fresh noise of a random model, on every backend.
    """
    key = (key, tuple(id(v) for v in model.variables))
    cache = _COMPILED.setdefault(model, {})
    if cache.get("settings", settings := _settings(model)) != settings:
        cache.clear()
    cache["settings"] = settings
    if key not in cache:
        infer = with_windows_cut_out(backend.inference(model))
        cache[key] = compiled_function(model, make(infer))
    function, fresh = cache[key], _NOISE.get(model)
    backward = key[0][0] in _BACKWARD if isinstance(key[0], tuple) else False
    if isinstance(function, Recorded) and fresh is not None:
        function = function.plain
    weights = weights_for(function, model) if fresh is None else None

    def run(*args: Any) -> Any:
        if _LISTENERS:
            images = max(int(a.shape[0]) for a in args if len(a.shape))  # the others are scalars
            _LISTENERS[-1](images, backward)
        if fresh is None:
            return function(weights, *args)
        fresh()
        return function(backend.weights_of(model), *args)  # the states are among the weights

    return run


def compiled_function(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function ``(weights, *tensors)`` that calls a model, as fast as its backend runs it."""
    if can_record(model):
        return Recorded(function, held_tensors(model))
    return backend.without_grad(backend.jit(function))


def weights_for(function: Callable[..., Any], model: Any) -> list[Any]:
    """The present weights in the form that a ``compiled_function`` expects."""
    if isinstance(function, Recorded):
        # detached: TorchScript would make ready to differentiate by what asks for gradients
        return [v._value.detach() for v in model.variables]
    return backend.weights_of(model)


def _settings(model: Any) -> Any:
    """The plain attributes of all layers, which a trace takes for constants."""
    layers = flat_layers(model)
    # `training` is PyTorch's own mark, which `fit` and `predict` set; Keras' layers are told
    ignored = _NOT_OF_THE_PASS | ({"training"} if backend.name() == "torch" else set())
    found: list[Any] = [keras.config.floatx(), keras.config.epsilon(), has_hooks(layers)]
    for layer in layers:
        found.append(id(layer))
        attributes = vars(layer)
        found.append(getattr(attributes.get("_dtype_policy"), "name", None))
        for key, value in attributes.items():
            if key[0] == "_" or key in ignored:
                continue
            kind = type(value)
            if kind in _NUMBERS:
                found += (key, value)
            elif issubclass(kind, (list, tuple)):
                if _plain(value):
                    found += (key, _copied(value))
            elif callable(value) or ops.is_tensor(value):
                found += (key, id(value))
            elif issubclass(kind, np.generic):
                found += (key, value)
    return found


def _copied(value: Any) -> Any:
    """A list as it is now: it may be changed in place, and Keras' own lists hold their layer."""
    return tuple(map(_copied, value)) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return type(value) in _NUMBERS or isinstance(value, np.generic)


@contextlib.contextmanager
def listening(listener: Callable[[int, bool], None]) -> Iterator[None]:
    """Within it each pass is told: number of images, padding included, and whether it goes back."""
    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)


@lru_cache(maxsize=128)
def pure(make: Callable[..., Any], *key: Any) -> Callable[..., Any]:
    """Compiled `make(*key)`, a function of tensors alone."""
    function = make(*key)
    if backend.name() == "torch" and backend.accelerator() is None:
        return partial(Recorded(lambda weights, *args: function(*args)), [])
    return backend.without_grad(backend.jit(function))


def scalar(value: float) -> Any:
    """`value` as a float32 tensor: a Python number would be traced anew for each value."""
    return ops.convert_to_tensor(np.float32(value))


def predict_logits(model: Any, x: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Float32 logits of shape (n, classes) with `training=False`, compiled, in padded batches."""
    run = compiled(model, "logits", logits_of)
    parts = []
    for rows, real in batches(len(x), fastest(batch_size, x.shape[1:])):
        logits = backend.to_numpy(run(ops.convert_to_tensor(x[rows], dtype="float32")))
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(
                "The model must return logits of shape (n, classes) with at least 2 classes. "
                f"Received: outputs of shape {logits.shape}"
            )
        parts.append(logits[:real])
    return np.concatenate(parts)


def logits_of(infer: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """What `compiled` makes of an inference: float32 logits."""
    return lambda weights, x: ops.cast(infer(weights, x), "float32")


def mean_logits(model: Any, x: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Logits, of which those of a random model under `noise` are means over `JUDGE_DRAWS` draws."""
    draws = JUDGE_DRAWS if model in _NOISE else 1
    total = predict_logits(model, x, batch_size)
    for _ in range(draws - 1):
        total = total + predict_logits(model, x, batch_size)
    return total / draws if draws > 1 else total


@contextlib.contextmanager
def noise(model: Any, x: np.ndarray, batch_size: int, seed: int) -> Iterator[None]:
    """Within it each pass of a random model sees noise of its own, a function of the seed.

    A model is random if a layer says so, or has a seed generator and answers two draws
    differently. The generators are put back at the end; a model that is not random is left alone.
    """
    if model in _NOISE or not seed_states(model):
        yield
        return
    with Draws(model, seed) as draws:
        if not random_layers(model):
            answers = []
            for number in range(2):
                draws.fresh(_APART, number)
                answers.append(predict_logits(model, x[:batch_size], batch_size))
            if np.array_equal(answers[0], answers[1], equal_nan=True):
                yield
                return
        numbers = itertools.count()
        _NOISE[model] = lambda: draws.fresh(_APART, next(numbers))
        try:
            yield
        finally:
            del _NOISE[model]
