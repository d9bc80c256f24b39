"""Names of classes: of the known data sets, of a model, and the superclasses of CIFAR-100."""

import weakref
from typing import Any

import numpy as np

DIGITS = tuple("0123456789")
CIFAR10 = ("airplane automobile bird cat deer dog frog horse ship truck").split()
CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
    "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
    "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
).split()
# as the authors of CIFAR-100 group its classes, in the order of their coarse labels
SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
_SUPERCLASS = np.array(
    [[name in group.split() for group in SUPERCLASSES.values()] for name in CIFAR100]
).argmax(axis=1)


def superclasses(y: Any) -> np.ndarray:
    """Labels of the 20 superclasses from those of the 100 classes of CIFAR-100.

    Args:
        y: integer labels (n,) in [0, 100).

    Returns:
        Integers (n,) in [0, 20), in the order of `SUPERCLASSES`.

    Raises:
        ValueError: if a label is out of its range.

    Example:

    >>> superclasses([0, 99])  # apple, worm
    array([ 4, 13])
    """
    labels = np.asarray(y)
    if labels.dtype.kind not in "iu" or (
        labels.size and not 0 <= labels.min() <= labels.max() < 100
    ):
        raise ValueError(f"`y` must be integer labels from 0 to 99. Received: {y!r}")
    return _SUPERCLASS[labels]


_NAMES: weakref.WeakKeyDictionary[Any, list[str]] = weakref.WeakKeyDictionary()


def declare_names(model: Any, names: list[str] | None) -> None:
    """Note the names of a model's classes; ``None`` where they are not known (any more)."""
    if names:
        _NAMES[model] = list(names)
    else:
        _NAMES.pop(model, None)


def names_of(model: Any) -> list[str] | None:
    """Names of a model's classes, or ``None`` where nobody said.

    Example:

    >>> names_of(dynzoo.from_preset("isometric_small_cifar10"))[:2]
    ['airplane', 'automobile']
    """
    try:
        return _NAMES.get(model)
    except TypeError:  # not a thing that can be remembered, so nobody did
        return None
