"""Writes `docs/guarantees.md`: what each flow promises, asked of the flows themselves.

    python docs/make_guarantees.py           writes docs/guarantees.md
    python docs/make_guarantees.py --check   exits with 1 if it is not up to date

Each row of the table is an entry of `layer.guarantees()` of a layer configured as shown.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dynzoo import layers as dl
from dynzoo import operators

PATH = Path(__file__).resolve().parent / "guarantees.md"

CONFIGURATIONS = {
    "GradientFlow(Dense(16))": lambda: dl.GradientFlow(operators.Dense(16)),
    'GradientFlow(Conv(16), integrator="rk4")': lambda: dl.GradientFlow(
        operators.Conv(16), integrator="rk4"
    ),
    'GradientFlow(Dense(16), direction="expansive", step_size=0.5)': lambda: dl.GradientFlow(
        operators.Dense(16), direction="expansive", step_size=0.5
    ),
    'SwitchingFlow(Dense(16), mode="prescribed")': lambda: dl.SwitchingFlow(
        operators.Dense(16), mode="prescribed"
    ),
    'SwitchingFlow(Dense(16), mode="flexible")': lambda: dl.SwitchingFlow(
        operators.Dense(16), mode="flexible"
    ),
    'SwitchingFlow(Dense(16), mode="sharp")': lambda: dl.SwitchingFlow(
        operators.Dense(16), mode="sharp"
    ),
    "SphericalFlow(Dense(16))": lambda: dl.SphericalFlow(operators.Dense(16)),
    "PresnovFlow(Dense(16))": lambda: dl.PresnovFlow(operators.Dense(16)),
    "MassPreservingFlow(Dense(16))": lambda: dl.MassPreservingFlow(operators.Dense(16)),
    "FirstIntegralFlow(Dense(16))": lambda: dl.FirstIntegralFlow(operators.Dense(16)),
    "HamiltonianFlow(Dense(16))": lambda: dl.HamiltonianFlow(operators.Dense(16)),
    'HamiltonianFlow(Dense(16), hamiltonian="joint")': lambda: dl.HamiltonianFlow(
        operators.Dense(16), hamiltonian="joint"
    ),
    "VolumePreservingFlow(Dense(16))": lambda: dl.VolumePreservingFlow(operators.Dense(16)),
    "ContractiveHamiltonianFlow(Dense(16))": lambda: dl.ContractiveHamiltonianFlow(
        operators.Dense(16)
    ),
    "ConvectionDiffusionFlow(Dense(16))": lambda: dl.ConvectionDiffusionFlow(operators.Dense(16)),
    "GraphDiffusion(0.4)": lambda: dl.GraphDiffusion(0.4, graph="knn"),
    "OrthonormalDense(16)": lambda: dl.OrthonormalDense(16),
    "MaxMin()": lambda: dl.MaxMin(),
    "SpatialShift()": lambda: dl.SpatialShift(),
    "UnitRowDense(10)": lambda: dl.UnitRowDense(10),
}

HEAD = """# What each layer guarantees

Made by `python docs/make_guarantees.py` from `layer.guarantees()`; the tests in `tests/` check each
of these on random weights and inputs, on three backends.

| layer, as configured | property | promise | number | condition | source |
| --- | --- | --- | ---: | --- | --- |
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def table() -> str:
    """The page in Markdown."""
    lines = []
    for name, make in CONFIGURATIONS.items():
        for g in make().guarantees():
            value = "" if g.value is None else f"{g.value:.6g}"
            cells = [f"`{name}`", g.property, g.statement, value, g.condition, g.source]
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    new = table()
    if "--check" in sys.argv[1:]:
        old = PATH.read_text(encoding="utf-8") if PATH.exists() else ""
        if new != old:
            print(f"{PATH} is not up to date: run docs/make_guarantees.py", file=sys.stderr)
        return int(new != old)
    PATH.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
