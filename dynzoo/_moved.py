"""Old paths of modules, each with one warning that names the new one."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

__all__ = ["MOVED", "install"]

# Old path -> new path, both below `dynzoo`.
MOVED = {
    "allocator": "utils.allocator",
    "answers": "inference.answers",
    "arguments": "utils.arguments",
    "attacks.active_test": "robustness.checks.planted",
    "attacks.campaign": "robustness.campaign",
    "attacks.checks": "robustness.checks.model",
    "attacks.gradient_check": "robustness.checks.gradients",
    "attacks.outcome_checks": "robustness.checks.outcomes",
    "attacks.outcomes": "robustness.outcomes",
    "attacks.progress": "robustness.progress",
    "attacks.square_windows": "attacks.square",
    "attacks.warnings": "robustness.checks.warning",
    "averaging": "training.averaging",
    "batch_mixing": "inference.batch_mixing",
    "batching": "inference.batching",
    "bfloat16_products": "operators.bfloat16_products",
    "by_epoch": "training.epoch_values",
    "cards": "zoo.cards",
    "certificate_file": "export.certificate_file",
    "certificates.audit_search": "certificates.slope_search",
    "certificates.bias_addition": "certificates.rules.bias_addition",
    "certificates.contractions": "certificates.rules.contractions",
    "certificates.conv_rules": "certificates.rules.conv",
    "certificates.floating_point": "certificates.rounding.floating_point",
    "certificates.image_rules": "certificates.rules.image",
    "certificates.index_maps": "certificates.rules.index_maps",
    "certificates.joins": "certificates.rules.joins",
    "certificates.linear_rules": "certificates.rules.linear",
    "certificates.local_layers": "certificates.local.layers",
    "certificates.local_operations": "certificates.local.operations",
    "certificates.local_ops": "certificates.local.ops",
    "certificates.local_relaxation": "certificates.local.relaxation",
    "certificates.operation_rules": "certificates.rules.operations",
    "certificates.rounding_bound": "certificates.rounding.bound",
    "certificates.rounding_flows": "certificates.rounding.flows",
    "certificates.rounding_operations": "certificates.rounding.operations",
    "certificates.rounding_rules": "certificates.rounding.rules",
    "certificates.slopes": "certificates.rules.activations",
    "certificates.window_rules": "certificates.rules.window",
    "checkpoints": "training.checkpoints",
    "claims": "robustness.certified",
    "command_inputs": "cli.inputs",
    "commands": "cli.program",
    "companions": "inference.companions",
    "comparison": "robustness.comparison",
    "comparison_command": "cli.compare",
    "comparison_page": "robustness.comparison",
    "console": "cli.console",
    "conv_norms": "spectral.convolutions",
    "corruption_evaluation": "robustness.corruptions",
    "csv_text": "utils.csv_text",
    "data.loading": "data.datasets",
    "demo": "cli.demo",
    "distorted_model": "augmentation.on_device",
    "distortions": "augmentation.distortions",
    "distribution": "training.distribution",
    "durations": "utils.formatting",
    "evaluation": "zoo.measurement",
    "evaluation_command": "cli.evaluate",
    "export_command": "cli.export",
    "exported_certificate": "export.certificate",
    "exported_runtimes": "export.runtimes",
    "finetuning": "training.finetuning",
    "fitted_epochs": "training.fitted_epochs",
    "folder_contents": "data.folder_contents",
    "guarantees": "guarantee",
    "held_out": "training.validation",
    "html_page": "utils.html",
    "image_checks": "inference.image_checks",
    "image_files": "inference.image_files",
    "image_folder": "data.image_folder",
    "image_parts": "data.parts",
    "inference_graph": "export.inference_graph",
    "interruption": "utils.interruption",
    "label_checks": "inference.label_checks",
    "labels": "inference.class_names",
    "layers.arguments": "utils.arguments",
    "layers.gradient_bound": "layers.gradient_flow",
    "layers.switching_bound": "layers.switching_flow",
    "layers.switching_fields": "layers.switching_flow",
    "layers.switching_steps": "layers.switching_flow",
    "leaderboard": "zoo.leaderboard",
    "loss_of_epoch": "training.loss_of_epoch",
    "model_identity": "inference.model_identity",
    "models.declared_sizes": "zoo.declared_sizes",
    "models.metadata_check": "zoo.metadata_check",
    "models.preset_files": "zoo.files",
    "models.presets": "zoo.preset_folder",
    "models.safe_config": "zoo.safe_config",
    "models.weight_parts": "zoo.weight_parts",
    "models.weights_file": "zoo.weights_file",
    "noise_curves": "robustness.noise_curves",
    "optimization": "training.builders",
    "option_types": "cli.options",
    "page": "robustness.report",
    "pixels": "augmentation.pixels",
    "predict_command": "cli.predict",
    "prediction": "zoo.prediction",
    "provenance": "robustness.provenance",
    "quick_look": "training.quick_look",
    "random_layers": "inference.draws",
    "recipes": "training.recipes",
    "refutation": "robustness.refutation",
    "report": "robustness.report",
    "resident_epochs": "training.resident_epochs",
    "runs": "training.run",
    "saved_report": "robustness.saved_report",
    "search_command": "cli.search",
    "singular_values": "spectral.singular_values",
    "streamed_images": "inference.streamed_images",
    "strict_json": "utils.strict_json",
    "train_command": "cli.train",
    "training.allocator": "utils.allocator",
    "training_clock": "training.clock",
    "training_loop": "training.epochs",
    "warm_start": "training.warm_start",
    "watching": "training.callbacks",
    "zoo.presets": "zoo.preset_folder",
}


class _Loader(importlib.abc.Loader):
    """Gives the module itself, under its old name too."""

    def __init__(self, new: str):
        self.new = new

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        warnings.warn(
            f"{spec.name} is {self.new} now; the old path goes with version 0.3",
            DeprecationWarning,
            stacklevel=2,  # frames of the import system do not count
        )
        module = importlib.import_module(self.new)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # which the import system has replaced by that of the old name


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith("dynzoo.") or name[7:] not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(name, _Loader(f"dynzoo.{MOVED[name[7:]]}"))


def install() -> None:
    """Serves old paths from now on; once is enough."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
