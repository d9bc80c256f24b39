"""dynzoo: neural networks that are discretised dynamical systems, with guarantees, on Keras 3.

`import dynzoo` registers dynzoo's layers, constraints, losses, metrics and optimizers with Keras,
so that `keras.saving.load_model` knows them; everything else is imported when it is first used.
The `dynzoo` command imports Keras only when its arguments are checked.

If `KERAS_BACKEND` is not set, Keras has no configuration that says otherwise, and TensorFlow is not
installed, the first installed of JAX and PyTorch becomes the backend.
"""

from typing import TYPE_CHECKING, Any

from dynzoo import _moved, _startup

_startup.prepare()
_moved.install()

if TYPE_CHECKING:
    from dynzoo import attacks as attacks
    from dynzoo import augmentation as augmentation
    from dynzoo import callbacks as callbacks
    from dynzoo import certificates as certificates
    from dynzoo import constraints as constraints
    from dynzoo import convert as convert
    from dynzoo import corruptions as corruptions
    from dynzoo import data as data
    from dynzoo import export as export
    from dynzoo import layers as layers
    from dynzoo import losses as losses
    from dynzoo import metrics as metrics
    from dynzoo import models as models
    from dynzoo import operators as operators
    from dynzoo import optimizers as optimizers
    from dynzoo import regularizers as regularizers
    from dynzoo import robustness as robustness
    from dynzoo import testing as testing
    from dynzoo import training as training
    from dynzoo import tuning as tuning
    from dynzoo.certificates import certify as certify
    from dynzoo.constraints import project as project
    from dynzoo.robustness.comparison import compare as compare
    from dynzoo.robustness.corruptions import evaluate_corruptions as evaluate_corruptions
    from dynzoo.robustness.evaluation import evaluate as evaluate
    from dynzoo.robustness.noise_curves import noise_curve as noise_curve
    from dynzoo.training import builders as optimization  # noqa: F401
    from dynzoo.training import distribution as distribution
    from dynzoo.training import recipes as recipes
    from dynzoo.zoo.prediction import predict as predict
    from dynzoo.zoo.preset_folder import from_preset as from_preset
    from dynzoo.zoo.preset_folder import push_to_hub as push_to_hub
    from dynzoo.zoo.preset_folder import save_to_preset as save_to_preset
    from dynzoo.zoo.shipped import presets as presets

# name -> (module, attribute), or (module, None) for the module itself
_LAZY: dict[str, tuple[str, str | None]] = {
    "attacks": ("dynzoo.attacks", None),
    "augmentation": ("dynzoo.augmentation", None),
    "callbacks": ("dynzoo.callbacks", None),
    "certificates": ("dynzoo.certificates", None),
    "constraints": ("dynzoo.constraints", None),
    "convert": ("dynzoo.convert", None),
    "corruptions": ("dynzoo.corruptions", None),
    "data": ("dynzoo.data", None),
    "distribution": ("dynzoo.training.distribution", None),
    "export": ("dynzoo.export", None),
    "layers": ("dynzoo.layers", None),
    "losses": ("dynzoo.losses", None),
    "metrics": ("dynzoo.metrics", None),
    "models": ("dynzoo.models", None),
    "operators": ("dynzoo.operators", None),
    "optimization": ("dynzoo.training.builders", None),
    "optimizers": ("dynzoo.optimizers", None),
    "recipes": ("dynzoo.training.recipes", None),
    "regularizers": ("dynzoo.regularizers", None),
    "robustness": ("dynzoo.robustness", None),
    "testing": ("dynzoo.testing", None),
    "training": ("dynzoo.training", None),
    "tuning": ("dynzoo.tuning", None),
    "certify": ("dynzoo.certificates", "certify"),
    "compare": ("dynzoo.robustness.comparison", "compare"),
    "evaluate": ("dynzoo.robustness", "evaluate"),
    "evaluate_corruptions": ("dynzoo.robustness.corruptions", "evaluate_corruptions"),
    "from_preset": ("dynzoo.zoo.preset_folder", "from_preset"),
    "noise_curve": ("dynzoo.robustness.noise_curves", "noise_curve"),
    "predict": ("dynzoo.zoo.prediction", "predict"),
    "presets": ("dynzoo.zoo.shipped", "presets"),
    "project": ("dynzoo.constraints", "project"),
    "push_to_hub": ("dynzoo.zoo.preset_folder", "push_to_hub"),
    "save_to_preset": ("dynzoo.zoo.preset_folder", "save_to_preset"),
}

__all__ = sorted([*_LAZY, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from dynzoo.utils.version import version

        value: Any = version()
    elif name in _LAZY:
        import importlib

        module, attribute = _LAZY[name]
        value = importlib.import_module(module)
        value = value if attribute is None else getattr(value, attribute)
    else:
        raise AttributeError(f"module 'dynzoo' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not _startup.COMMAND:
    _startup.load_keras()
