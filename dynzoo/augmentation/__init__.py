"""Training images, changed at random: on the host, in a layer, or on the device."""

from dynzoo.augmentation.batches import DISTORTIONS as DISTORTIONS
from dynzoo.augmentation.batches import Augmented as Augmented
from dynzoo.augmentation.batches import RandomCropFlip as RandomCropFlip
from dynzoo.augmentation.batches import random_crop_flip as random_crop_flip
