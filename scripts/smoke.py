"""Uses an installed dynzoo as a first user does: loads, certifies, attacks, trains, saves.

python smoke.py jax           # on that backend (scripts/versions.py)
python smoke.py jax --alone   # and nothing but the core is installed (scripts/release.sh)
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")


def alone(backend: str) -> None:
    """No other backend, no extra, and the weights that a wheel has."""
    there = [name for name in BACKENDS if importlib.util.find_spec(name)]
    assert there == [backend], f"{there} are installed, not {backend} alone"
    extras = [m for m in ("matplotlib", "sklearn", "keras_tuner") if importlib.util.find_spec(m)]
    assert not extras, f"the core brought {extras}"

    import dynzoo
    from dynzoo.zoo.downloads import DownloadError

    assert Path(dynzoo.__file__).is_relative_to(sys.prefix), dynzoo.__file__
    try:
        dynzoo.from_preset("resnet_cifar10")
    except DownloadError as error:
        assert "DYNZOO_WEIGHTS" in str(error), error
    else:
        raise AssertionError("weights of a preset that do not come with a wheel")


def use(backend: str) -> None:
    """The way of the README, on a few digits."""
    import keras
    import numpy as np

    import dynzoo

    assert keras.backend.backend() == backend
    (x, y), _ = dynzoo.data.load("digits")
    preset = dynzoo.from_preset("isometric_tiny_cifar10")
    certificate = dynzoo.certify(preset)
    labels, radii = certificate.radii(x[:8])
    assert 1.0 < certificate.lipschitz < 1.5 and radii.shape == (8,) and radii.max() > 0
    np.testing.assert_array_equal(labels, preset.predict(x[:8], verbose=0).argmax(axis=1))

    x = x[:64, ::4, ::4]  # small images and a small model: what takes long is compiling
    model = dynzoo.models.isometric_classifier(
        (8, 8, 3), 10, widths=(8,), steps=(1,), neck_units=8, dense_steps=1
    )
    model.compile(dynzoo.optimizers.RiemannianMuon(0.01), dynzoo.losses.OffsetCrossentropy())
    model.fit(x, y[:64], batch_size=32, epochs=1, verbose=0)
    assert 0.0 < dynzoo.certify(model).lipschitz < 1.5
    report = dynzoo.evaluate(model, x[:8], y[:8], eps=0.1, attacks="fast")
    assert report.certified[0.1] <= report.robust[0.1] <= report.clean
    with tempfile.TemporaryDirectory() as folder:
        dynzoo.save_to_preset(model, f"{folder}/preset")
        again = dynzoo.from_preset(f"{folder}/preset")
        model.save(f"{folder}/model.keras")
        whole = keras.saving.load_model(f"{folder}/model.keras")
    for other in (again, whole):
        np.testing.assert_array_equal(
            other.predict(x[:8], verbose=0), model.predict(x[:8], verbose=0)
        )
    print(f"dynzoo {dynzoo.__version__}, Keras {keras.__version__} on {backend}: works")


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", sys.argv[1])
    if sys.argv[2:] == ["--alone"]:
        alone(sys.argv[1])
    use(sys.argv[1])
