"""Classifiers as functions of a config, and the presets that ship with weights."""

from dynzoo.models.isometric import isometric_classifier as isometric_classifier

ARCHITECTURES = {"isometric": isometric_classifier}
