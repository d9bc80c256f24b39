"""On JAX and PyTorch nothing that dynzoo does by itself imports TensorFlow."""

import sys

import keras
import pytest
from training_fixtures import RECIPE, in_new_process, random_images

from dynzoo import backend
from dynzoo.utils import tensorflow_import

of_others = pytest.mark.skipif(backend.name() == "tensorflow", reason="TensorFlow is the backend")

# Each part is named if TensorFlow is there after it.
PARTS = """
import sys
import numpy as np
import keras
import dynzoo
from dynzoo.training import finetuning, loop as training

def check(part):
    assert "tensorflow" not in sys.modules, part

recipe = {recipe!r}
recipe["training"]["optimizer"] = {{"name": "muon", "learning_rate": 0.05, "stacked": True}}
model = training.train(recipe, {images!r}, {output!r} + "/run", verbose=0)
check("train")
dynzoo.save_to_preset(model, {output!r} + "/preset")
check("save_to_preset")
model = dynzoo.from_preset({output!r} + "/preset", dtype="mixed_bfloat16")
check("from_preset in another dtype")
model = dynzoo.from_preset({output!r} + "/preset")
x = np.random.default_rng(0).random((6, *model.input_shape[1:]), dtype="float32")
y = np.arange(6) % model.output_shape[-1]
dynzoo.evaluate(model, x, y, eps=0.1, attacks="fast", verbose=False)
check("evaluate")
dynzoo.certify(model).radii(x)
check("certify")
dynzoo.certificates.audit(model, x, pairs=2, steps=2)
check("audit")
dynzoo.convert.to_plain(model)
check("to_plain")
finetuning.finetune(model, x, y, epochs=1, batch_size=3, verbose=0)
check("finetune")
"""


@of_others
def test_no_part_imports_tensorflow(tmp_path):
    images = random_images(tmp_path)
    done = in_new_process(PARTS.format(recipe=RECIPE, images=str(images), output=str(tmp_path)))
    assert done.returncode == 0, done.stderr[-2000:]


@of_others
def test_keras_asks_again_afterwards(monkeypatch):
    lazy = keras.src.utils.module_utils.tensorflow
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(lazy, "_available", None)
    with pytest.raises(KeyError), tensorflow_import.without_tensorflow():
        with tensorflow_import.without_tensorflow():
            assert not lazy.available
        assert not lazy.available
        raise KeyError
    assert lazy._available is None


def test_what_is_imported_stays(monkeypatch):
    lazy = keras.src.utils.module_utils.tensorflow
    monkeypatch.setitem(sys.modules, "tensorflow", sys)  # whatever it is
    before = lazy._available
    with tensorflow_import.without_tensorflow():
        assert lazy._available is before


def test_a_keras_that_imports_it_otherwise_is_left_alone(monkeypatch):
    monkeypatch.setattr(tensorflow_import, "_lazy_tensorflow", lambda: None)
    layer = keras.layers.Dense(3)
    assert tensorflow_import.config_of(layer) == layer.get_config()
    assert tensorflow_import.serialized(layer) == keras.saving.serialize_keras_object(layer)
