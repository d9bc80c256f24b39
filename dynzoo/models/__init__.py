"""Classifiers as functions of a config, and the presets that ship with weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dynzoo.models.isometric import isometric_classifier as isometric_classifier
from dynzoo.models.structured import structured_classifier as structured_classifier

ARCHITECTURES: dict[str, Callable[..., Any]] = {
    "isometric": isometric_classifier,
    "structured": structured_classifier,
}
