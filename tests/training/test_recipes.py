"""Recipes: every mistake is refused, and its message names the key."""

import copy
import math

import pytest
import yaml

from dynzoo.augmentation.batches import DISTORTIONS
from dynzoo.training import recipes
from dynzoo.training.recipes import RecipeError

pytestmark = pytest.mark.any_backend

MINIMAL = {
    "name": "tiny",
    "architecture": {"name": "isometric"},
    "data": {"name": "digits"},
    "training": {
        "epochs": 3,
        "loss": {"name": "offset_crossentropy"},
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
    },
}


def changed(path, value):
    recipe = copy.deepcopy(MINIMAL)
    *parents, key = path.split(".")
    section = recipe
    for parent in parents:
        section = section.setdefault(parent, {})
    if value is ...:
        del section[key]
    else:
        section[key] = value
    return recipe


def test_defaults_are_filled_in_and_the_input_left_alone():
    before = copy.deepcopy(MINIMAL)
    recipe = recipes.validate(MINIMAL)
    assert before == MINIMAL
    assert recipe["training"]["batch_size"] == 256 and recipe["training"]["keep"] == "last"
    assert recipe["training"]["schedule"]["warmup"] == 0.02
    assert recipe["training"]["schedule"]["decay"] == 0.5
    distortions = dict.fromkeys(DISTORTIONS, 0.0)
    plain = {"name": "digits", "validation": 5000, "crop_padding": 4, "flip": True}
    assert recipe["data"] == {**plain, **distortions}
    assert recipe["evaluation"]["eps"] == [36 / 255, 72 / 255, 108 / 255]
    recipe["training"]["schedule"]["warmup"] = 1.0
    assert recipes.DEFAULTS["training"]["schedule"]["warmup"] == 0.02
    assert recipes.validate(recipes.validate(MINIMAL)) == recipes.validate(MINIMAL)


def test_flips_may_alternate():
    recipe = recipes.validate(changed("data.flip", "alternating"))
    assert recipe["data"]["flip"] == "alternating"


@pytest.mark.parametrize(
    ("value", "eps"), [("36/255", 36 / 255), (0.5, 0.5), (1, 1.0), ("0.25", 0.25), ("1/3", 1 / 3)]
)
def test_radii_may_be_fractions(value, eps):
    assert recipes.validate(changed("evaluation.eps", [value]))["evaluation"]["eps"] == [eps]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", ...),
        ("name", 3),
        ("nam", "x"),
        ("description", ["x"]),
        ("architecture", "isometric"),
        ("architecture.name", ...),
        ("architecture.name", "perceptron"),
        ("architecture.name", ["isometric"]),
        ("data", None),
        ("data.name", ...),
        ("data.name", 10),
        ("data.shuffle", True),
        ("data.validation", 0),
        ("data.validation", "many"),
        ("data.validation", 10.5),
        ("data.crop_padding", -1),
        ("data.flip", 1),
        ("data.flip", "sometimes"),
        ("data.rotation", -5),
        ("data.rotation", math.nan),
        ("data.zoom", 1),
        ("data.color_jitter", 1.5),
        ("data.color_jitter", "some"),
        ("data.color_jitter", {1: 0.2}),
        ("data.color_jitter", {0: 0.2, 3: 2}),
        ("data.crop_padding", {0: 3}),
        ("training.loss.offset", {0: 0.1, 4: 0.2, 2: 0.3}),
        ("training.epochs", ...),
        ("training.epochs", 0),
        ("training.epochs", True),
        ("training.epochs", 2.5),
        ("training.epoch", 3),
        ("training.seed", -1),
        ("training.batch_size", 0),
        ("training.validate_every", 0),
        ("training.dtype", "float64"),
        ("training.dtype", 16),
        ("training.keep", "first"),
        ("training.loss", "hinge"),
        ("training.loss.name", "mse"),
        ("training.loss.name", ...),
        ("training.optimizer.name", "lion"),
        ("training.optimizer.name", {"a": 1}),
        ("training.optimizer.learning_rate", ...),
        ("training.optimizer.learning_rate", "1e-3"),
        ("training.optimizer.learning_rate", 0),
        ("training.optimizer.learning_rate", -0.1),
        ("training.optimizer.learning_rate", math.inf),
        ("training.optimizer.learning_rate", None),
        ("training.seed", 2**32),
        ("training.optimizer.weight_decay", "1e-4"),
        ("training.optimizer.momentum", "9e-1"),
        ("training.optimizer.momentum", 1.5),
        ("training.optimizer.beta_1", 5),
        ("training.optimizer.epsilon", "1e-7"),
        ("training.optimizer.clipnorm", -1.0),
        ("training.optimizer.loss_scale_factor", "2"),
        ("training.optimizer.adam_learning_rate", -1.0),
        ("training.optimizer.gradient_accumulation_steps", 2.5),
        ("training.optimizer.use_ema", "yes"),
        ("training.optimizer.nesterov", 1),
        ("training.schedule.warmup", -0.1),
        ("training.schedule.warmup", "short"),
        ("training.schedule.warmup", 0.7),
        ("training.schedule.warmup", math.nan),
        ("training.schedule.decay", 1.1),
        ("training.schedule.cool", 0.1),
        ("evaluation.norm", "l1"),
        ("evaluation.eps", []),
        ("evaluation.eps", 0.5),
        ("evaluation.eps", [0]),
        ("evaluation.eps", ["-1/255"]),
        ("evaluation.eps", ["36/0"]),
        ("evaluation.eps", ["wide"]),
        ("evaluation.eps", ["1e400"]),
        ("evaluation.eps", [math.inf]),
        ("evaluation.eps", [math.nan]),
        ("evaluation.eps", [True]),
    ],
)
def test_every_error_names_its_key(path, value):
    with pytest.raises(RecipeError, match=f"`{path}`"):
        recipes.validate(changed(path, value))


@pytest.mark.parametrize(
    ("section", "key"), [("data", "data.name"), ("training", "training.epochs")]
)
def test_a_missing_section_misses_its_keys(section, key):
    with pytest.raises(RecipeError, match=f"`{key}` is missing"):
        recipes.validate(changed(section, ...))


def test_unknown_keys_list_the_known_ones():
    with pytest.raises(RecipeError, match="Known: data.name, data.validation"):
        recipes.validate(changed("data.nmae", "x"))


def test_numbers_may_be_integers_where_floats_are_expected():
    recipe = recipes.validate(changed("training.schedule.warmup", 0))
    assert recipe["training"]["schedule"]["warmup"] == 0.0
    recipe = recipes.validate(changed("training.optimizer.learning_rate", 1))
    assert recipe["training"]["optimizer"]["learning_rate"] == 1


def test_values_by_epoch_have_integer_keys_and_are_all_checked():
    given = changed("data.rotation", {"0": 5, "3": 15})  # as JSON has them
    given["training"]["loss"]["offset"] = {"0": 0.2, "10": 0.4, "9": 0.3}
    with pytest.raises(RecipeError, match="`training.loss.offset` must map increasing epochs"):
        recipes.validate(given)
    given["training"]["loss"]["offset"] = {"0": 0.2, "9": 0.3, "10": 0.4}
    recipe = recipes.validate(given)
    assert recipe["data"]["rotation"] == {0: 5.0, 3: 15.0}
    assert recipe["training"]["loss"]["offset"] == {0: 0.2, 9: 0.3, 10: 0.4}
    assert recipes.validate(recipe) == recipe
    for loss in ({"temperature": {0: 1.0, 30: -1.0}}, {"temperature": 0}, {"margin": 1.0}):
        with pytest.raises(RecipeError, match="`training.loss`: .*(temperature|margin)"):
            recipes.validate(changed("training.loss", {"name": "offset_crossentropy"} | loss))


def test_shipped_recipes_load():
    assert recipes.find("isometric_small_cifar10").name == "isometric_small_cifar10.yaml"
    recipe = recipes.load("isometric_small_cifar10")
    assert recipe["name"] == "isometric_small_cifar10" and recipe["data"]["name"] == "cifar10"
    for path in recipes.find("isometric_small_cifar10").parent.glob("*.yaml"):
        assert recipes.load(path)["name"] == path.stem


def test_load_from_a_file_and_its_errors(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    assert recipes.load(path) == recipes.load(str(path)) == recipes.load(MINIMAL)
    path.write_text(yaml.safe_dump(changed("training.epochs", 0)))
    with pytest.raises(RecipeError, match="mine.yaml: `training.epochs` must be at least 1"):
        recipes.load(path)
    path.write_text("name: [unclosed")
    with pytest.raises(RecipeError, match="mine.yaml: not readable as YAML"):
        recipes.load(path)
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match="mine.yaml: not readable as YAML"):
        recipes.load(path)
    for empty in ("", "- 1\n- 2\n"):
        path.write_text(empty)
        with pytest.raises(RecipeError, match="mine.yaml: must hold a mapping"):
            recipes.load(path)
    with pytest.raises(RecipeError, match="no recipe file 'nowhere'.*isometric_small_cifar10"):
        recipes.load("nowhere")


def test_yaml_cannot_run_code(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []")
    with pytest.raises(RecipeError, match="evil.yaml: not readable as YAML"):
        recipes.load(path)


def test_fewer_classes_than_the_data_have_are_refused():
    from dynzoo.training import build_model

    recipe = recipes.validate(changed("architecture.num_classes", 2))
    with pytest.raises(RecipeError, match=r"`architecture.num_classes` must be at least 3.*: 2"):
        build_model(recipe, 3, (8, 8, 1))


def test_a_certificate_in_the_maximum_norm_needs_a_larger_ball():
    from dynzoo.training.validation import l2_radius

    evaluation = {"norm": "linf", "eps": [0.1, 0.2]}
    assert l2_radius(evaluation, (4, 4, 4)) == pytest.approx(0.8)
    assert l2_radius({**evaluation, "norm": "l2"}, (4, 4, 4)) == 0.1
