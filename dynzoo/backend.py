"""The one module that knows which backend runs: input gradients, compilation, tensor to NumPy.

Keras 3 has no public gradient of a function with respect to its input, and the three backends
treat model weights differently inside a compiled function: TensorFlow reads variables by
reference, PyTorch runs eagerly, JAX freezes whatever it closes over when it traces. The functions
here hide that, so that an attack is written once and never runs on stale weights.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

_INPUT_GRADIENT = contextvars.ContextVar("input_gradient", default=False)


def name() -> str:
    """Name of the running Keras backend: ``"tensorflow"``, ``"jax"`` or ``"torch"``."""
    return str(keras.backend.backend())


def version() -> str:
    """Version of the running backend's package."""
    import importlib

    return str(importlib.import_module(name()).__version__)


def compiles() -> bool:
    """Whether ``jit`` compiles for fixed shapes, so that a new batch shape costs a new trace."""
    return name() in ("tensorflow", "jax")


def fit_with_jit() -> bool | str:
    """The ``jit_compile`` argument of ``model.compile`` that trains fastest.

    Keras' own choice, except on TensorFlow without an accelerator. There XLA and plain graphs are
    about equally fast in a quiet process (benchmarks/throughput.py, ``--jit``), but under ``fit``
    on a small machine XLA spent half of its time on fresh memory pages.
    """
    if name() == "tensorflow" and accelerator() is None:
        return False
    return "auto"


def fit_builds_late() -> bool:
    """Whether ``fit`` makes the variables of optimizer and metrics in its first step.

    TensorFlow does unless a strategy distributes the model; the others make them before.
    """
    if name() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.distribute.has_strategy()


def builds_metrics_late() -> bool:
    """Whether metrics are being built in the first step, after callbacks have begun."""
    if not fit_builds_late():
        return False
    import tensorflow as tf

    return not tf.executing_eagerly()


def to_numpy(x: Any) -> np.ndarray:
    """NumPy copy of a tensor, cut from its gradient graph and moved to the host."""
    return np.asarray(keras.ops.convert_to_numpy(x))


def value_of(variable: Any) -> np.ndarray:
    """NumPy copy of a Keras variable; of one of its copies where several devices have one."""
    return to_numpy(keras.ops.convert_to_tensor(variable))


def own_arrays(variables: Iterable[Any]) -> None:
    """Gives variables arrays of their own on JAX, after Keras put averages in the weights' place.

    Each weight is one array with its average then. The next ``fit`` would give the memory of both
    away, and lose the weights (findings/keras_averages_on_jax_allow_one_fit.sh).
    """
    if name() == "jax":
        for variable in variables:
            variable.assign(np.array(value_of(variable)))


def value_and_grad(fn: Callable[..., Any]) -> Callable[..., tuple[tuple[Any, Any], Any]]:
    r"""Value of a scalar function and its gradient with respect to the first argument.

    Returns $g(x, \ldots) = ((f(x, \ldots), a), \nabla_x f(x, \ldots))$. Only the input is
    differentiated: no gradient is accumulated in any variable on any backend.

    Args:
        fn: maps a tensor ``x``, and further arguments that are passed through, to a scalar tensor
            or to a pair (scalar tensor, auxiliary tensors).

    Returns:
        A function of the same arguments that returns ``((value, aux), gradient)``; ``aux`` is
        ``None`` if ``fn`` returns a scalar alone.

    Example:

    >>> g = value_and_grad(lambda x: keras.ops.sum(x**2))
    >>> (value, _), gradient = g(keras.ops.ones((1, 3)))
    >>> to_numpy(gradient).tolist()
    [[2.0, 2.0, 2.0]]
    """

    def with_aux(x: Any, *args: Any) -> tuple[Any, Any]:
        result = fn(x, *args)
        return result if isinstance(result, tuple) else (result, None)

    maker = {"tensorflow": _tensorflow_grad, "jax": _jax_grad, "torch": _torch_grad}
    if name() not in maker:
        raise RuntimeError(f"The backend {name()!r} has no input gradients. Use {list(maker)}.")
    return maker[name()](with_aux)


def _jax_grad(fn: Callable[..., Any]) -> Callable[..., Any]:
    import jax

    return jax.value_and_grad(fn, has_aux=True)


def _tensorflow_grad(fn: Callable[..., Any]) -> Callable[..., Any]:
    import tensorflow as tf

    def run(x: Any, *args: Any) -> Any:
        x = tf.convert_to_tensor(x)
        # Watching only the input keeps the tape from recording what the variables would need.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            value, aux = fn(x, *args)
        gradient = tape.gradient(value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return (value, aux), gradient

    return run


def _torch_grad(fn: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def run(x: Any, *args: Any) -> Any:
        before = _INPUT_GRADIENT.set(True)
        try:
            with torch.enable_grad():
                x = keras.ops.convert_to_tensor(x).detach().clone().requires_grad_(True)
                value, aux = fn(x, *args)
                if value.requires_grad:
                    # autograd.grad, unlike backward(), leaves the `.grad` of the weights alone.
                    (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
                else:
                    gradient = None
        finally:
            _INPUT_GRADIENT.reset(before)
        if gradient is None:
            gradient = torch.zeros_like(x)
        return (value.detach(), keras.tree.map_structure(_detach, aux)), gradient.detach()

    return run


def takes_input_gradient() -> bool:
    """Whether a function of ``value_and_grad`` runs, whose operations PyTorch may be recording."""
    return _INPUT_GRADIENT.get()


def _detach(t: Any) -> Any:
    return t.detach() if hasattr(t, "detach") else t


def jit(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` compiled by ``jax.jit`` or, once a shape, ``tf.function``; on PyTorch ``fn`` itself.

    Arguments must be tensors (or nested lists of them): a Python number would cost TensorFlow one
    trace per value.
    """
    if name() == "jax":
        import jax

        return jax.jit(fn)
    if name() == "tensorflow":
        return _tensorflow_jit(fn)
    return fn


def _tensorflow_jit(fn: Callable[..., Any]) -> Callable[..., Any]:
    import tensorflow as tf

    # TensorFlow warns of a function that is traced for many shapes, as an attack does on purpose
    # whose batches shrink. Concrete functions, one for each signature, spare the user that.
    concrete: dict[Any, Callable[..., Any]] = {}

    def run(*args: Any) -> Any:
        signature = tuple((tuple(t.shape), t.dtype) for t in keras.tree.flatten(args))
        if signature not in concrete:
            concrete[signature] = tf.function(fn, autograph=False).get_concrete_function(*args)
        return concrete[signature](*args)

    return run


def jit_once(fn: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """``fn`` for arguments of these shapes that are seen a few times only.

    JAX compiles it without optimisation, in a fraction of the time, which is still far less than
    one compilation for each operation; elsewhere it is ``fn`` itself, run eagerly.
    """
    if name() != "jax":
        return without_grad(fn)
    import jax

    options: dict[str, Any] = {"xla_backend_optimization_level": 0}
    return jax.jit(fn).lower(*args).compile(compiler_options=options)


def has_float64() -> bool:
    """Whether arrays of float64 stay float64; JAX has them only if told so beforehand."""
    if name() != "jax":
        return True
    import jax

    return str(jax.dtypes.canonicalize_dtype("float64")) == "float64"


def full_precision() -> contextlib.AbstractContextManager[Any]:
    """A scope in which float32 products are made of float32, whatever the process is set to.

    Accelerators may round the factors of a product to fewer digits (TF32: 11 bits, some 5e-4 of
    each), which is more than a small step of training changes. On JAX whatever is traced in the
    scope keeps full precision. On TensorFlow and PyTorch whatever runs in it does: they have one
    setting for the process, which is set back at the end.

    Example:

    >>> with full_precision():
    ...     kernel = constraint(kernel)
    """
    if name() == "jax":
        import jax

        return jax.default_matmul_precision("highest")
    return _process_at_full_precision()


def fit_at_full_precision() -> contextlib.AbstractContextManager[Any]:
    """A scope for ``fit`` in which constraints, which ask for ``full_precision``, get it.

    On TensorFlow that is the setting of the process while compiled functions run, for all float32
    products; elsewhere the constraints' own scopes are enough.
    """
    return full_precision() if name() == "tensorflow" else contextlib.nullcontext()


@contextlib.contextmanager
def _process_at_full_precision() -> Iterator[None]:
    get, set_to, full = _precision_settings()
    before = get()
    if before == full:
        yield
        return
    set_to(full)
    try:
        yield
    finally:
        set_to(before)


def _precision_settings() -> tuple[Callable[[], Any], Callable[[Any], None], Any]:
    """How the process' precision of float32 products is read and set, and its full value."""
    if name() == "torch":
        import torch

        cudnn = torch.backends.cudnn

        def set_to(value: Any) -> None:
            torch.set_float32_matmul_precision(value[0])
            cudnn.allow_tf32 = value[1]

        return (
            lambda: (torch.get_float32_matmul_precision(), cudnn.allow_tf32),
            set_to,
            ("highest", cudnn.allow_tf32 and not torch.cuda.is_available()),
        )
    import tensorflow as tf

    tf32 = tf.config.experimental
    return tf32.tensor_float_32_execution_enabled, tf32.enable_tensor_float_32_execution, False


def weights_of(model: Any) -> list[Any]:
    """The present weights in the form that the function of ``inference(model)`` expects."""
    return [v.value for v in model.variables] if name() == "jax" else []


def inference(model: Any) -> Callable[[Any, Any], Any]:
    """Pure function ``(weights, x) -> model(x, training=False)`` that is safe to compile.

    On JAX the weights enter as arguments, so a compiled function follows later training; on
    TensorFlow and PyTorch variables are read by reference and ``weights`` is an empty list (on
    PyTorch it may also be a tensor for each variable, in their place). The function holds the model
    weakly: a cache of compiled functions keeps no model alive.
    """
    reference = weakref.ref(model)

    def call(weights: list[Any], x: Any) -> Any:
        live = reference()
        if live is None:
            raise RuntimeError("The model of this compiled function was deleted.")
        if not weights:
            return live(x, training=False)
        pairs = list(zip(live.variables, weights, strict=True))
        with keras.StatelessScope(state_mapping=pairs) as scope:
            outputs = live(x, training=False)
        if name() == "torch" and any(scope.get_current_value(v) is not w for v, w in pairs):
            raise RuntimeError("The model writes to its variables.")
        return outputs

    return call


def repeat_while(
    condition: Callable[..., Any], body: Callable[..., Any], state: tuple, most: int
) -> tuple:
    """``while condition(*state): state = body(*state)``, at most ``most`` times, compiled or not.

    Outside of a compiled function it is a plain loop: JAX would compile a loop anew in each call.
    """
    traced = False
    if name() == "jax":
        import jax

        traced = any(isinstance(s, jax.core.Tracer) for s in state)
    elif name() == "tensorflow":
        import tensorflow as tf

        traced = not tf.executing_eagerly()
    if traced:
        return keras.ops.while_loop(condition, body, state, maximum_iterations=most)
    for _ in range(most):
        if not bool(condition(*state)):
            break
        state = body(*state)
    return state


def without_grad(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn``, recording no gradient graph on PyTorch; ``fn`` itself elsewhere."""
    if name() != "torch":
        return fn
    import torch

    return torch.no_grad()(fn)


def accelerator() -> str | None:
    """Name of the accelerator that the backend computes on, or ``None`` on a CPU."""
    if name() == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if name() == "jax":
        import jax

        device = jax.devices()[0]
        return None if device.platform == "cpu" else str(device.device_kind)
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return None
    return str(tf.config.experimental.get_device_details(devices[0]).get("device_name", "GPU"))


def threads() -> int:
    """On how many threads PyTorch computes."""
    import torch

    return int(torch.get_num_threads())


def track_weights(model: Any) -> None:
    """Make PyTorch see the weights of a model that was built before they had values."""
    if name() == "torch":
        for module in list(model.modules()):
            if isinstance(module, keras.layers.Layer) and module.built:
                module.torch_params  # noqa: B018  (made when first asked for)


def small_traces(entries: int) -> contextlib.AbstractContextManager[Any]:
    """A scope in which tracing a model never fills a tensor of more than so many entries.

    TensorFlow and JAX trace without values. On PyTorch, Keras does so as well, but where an
    operation fails it tries again with real tensors, of whatever size the model declares.

    Args:
        entries: largest number of entries of a real tensor.

    Raises:
        ValueError: inside the scope, in place of a larger tensor.
    """
    if name() != "torch":
        return contextlib.nullcontext()
    import torch

    def check(tensor: Any) -> None:
        if isinstance(tensor, torch.Tensor) and math.prod(tensor.shape) > entries:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is too large to be traced")

    def shadow(value: Any) -> Any:
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    class Small(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            flat = keras.tree.flatten((args, kwargs))
            real = [t for t in flat if isinstance(t, torch.Tensor) and t.device.type != "meta"]
            made = kwargs.get("device")
            if real or made not in (None, "meta"):
                # the size of the result first, where PyTorch can tell it without making it
                try:
                    plan = {**kwargs, **({} if made is None else {"device": "meta"})}
                    found = func(*keras.tree.map_structure(shadow, args), **plan)
                except Exception:
                    found = None
                for tensor in keras.tree.flatten(found):
                    check(tensor)
            return func(*args, **kwargs)

    return Small()
