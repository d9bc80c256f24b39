"""Uses an installed dynzoo as a first user does, on the one backend that is there.

python smoke.py jax       # run by scripts/release.sh, in an environment that has nothing else
"""

import importlib.util
import sys
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")


def main(backend: str) -> None:
    there = [name for name in BACKENDS if importlib.util.find_spec(name)]
    assert there == [backend], f"{there} are installed, not {backend} alone"
    extras = [m for m in ("matplotlib", "sklearn", "keras_tuner") if importlib.util.find_spec(m)]
    assert not extras, f"the core brought {extras}"

    import keras

    import dynzoo
    from dynzoo.zoo.downloads import DownloadError

    assert Path(dynzoo.__file__).is_relative_to(sys.prefix), dynzoo.__file__
    assert keras.backend.backend() == backend
    (x, y), _ = dynzoo.data.load("digits")
    model = dynzoo.from_preset("isometric_tiny_cifar10", num_classes=10)
    labels, radii = dynzoo.certify(dynzoo.from_preset("isometric_tiny_cifar10")).radii(x[:8])
    assert labels.shape == radii.shape == (8,) and (radii >= 0).all() and radii.max() > 0
    report = dynzoo.evaluate(model, x[:8], y[:8], eps=0.1, attacks="fast")
    assert report.certified[0.1] <= report.robust[0.1] <= report.clean
    try:
        dynzoo.from_preset("resnet_cifar10")
    except DownloadError as error:
        assert "DYNZOO_WEIGHTS" in str(error), error
    else:
        raise AssertionError("weights of a preset that did not ship")
    print(f"dynzoo {dynzoo.__version__}, Keras {keras.__version__} on {backend}: works")


if __name__ == "__main__":
    main(sys.argv[1])
