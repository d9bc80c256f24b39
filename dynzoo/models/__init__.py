"""Classifiers as functions of a config, and the presets that ship with weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dynzoo.models.convection_diffusion import (
    convection_diffusion_classifier as convection_diffusion_classifier,
)
from dynzoo.models.convection_diffusion import feynman_kac_model as feynman_kac_model
from dynzoo.models.hamiltonian import hamiltonian_classifier as hamiltonian_classifier
from dynzoo.models.isometric import isometric_classifier as isometric_classifier
from dynzoo.models.resnet import resnet_classifier as resnet_classifier
from dynzoo.models.structured import structured_classifier as structured_classifier
from dynzoo.models.widening import widen as widen

ARCHITECTURES: dict[str, Callable[..., Any]] = {
    "convection_diffusion": convection_diffusion_classifier,
    "hamiltonian": hamiltonian_classifier,
    "isometric": isometric_classifier,
    "resnet": resnet_classifier,
    "structured": structured_classifier,
}
