"""Writes `docs/guarantees.md`: what each flow promises, asked of the flows themselves.

    python docs/make_guarantees.py           writes docs/guarantees.md
    python docs/make_guarantees.py --check   exits with 1 if it is not up to date

Each row of the first table is an entry of `layer.guarantees()` of a layer configured as shown, each
row of the second one of `dynzoo.integrators.table()`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dynzoo import integrators, operators
from dynzoo import layers as dl
from dynzoo.integrators.registry import INVARIANTS

PATH = Path(__file__).resolve().parent / "guarantees.md"

CONFIGURATIONS = {
    "GradientFlow(Dense(16))": lambda: dl.GradientFlow(operators.Dense(16)),
    'GradientFlow(Conv(16), integrator="rk4")': lambda: dl.GradientFlow(
        operators.Conv(16), integrator="rk4"
    ),
    'GradientFlow(Dense(16), direction="expansive", step_size=0.5)': lambda: dl.GradientFlow(
        operators.Dense(16), direction="expansive", step_size=0.5
    ),
    "ImplicitGradientFlow(Dense(16))": lambda: dl.ImplicitGradientFlow(operators.Dense(16)),
    "ImplicitGradientFlow(Dense(16), step_size=20)": lambda: dl.ImplicitGradientFlow(
        operators.Dense(16), step_size=20
    ),
    "SoftmaxGradientFlow(16, beta=2)": lambda: dl.SoftmaxGradientFlow(16, beta=2),
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
    "BetaAbs()": lambda: dl.BetaAbs(),
    "SpatialShift()": lambda: dl.SpatialShift(),
    "L2Pooling2D()": lambda: dl.L2Pooling2D(),
    "UnitRowDense(10)": lambda: dl.UnitRowDense(10),
}

HEAD = """# What each layer guarantees

Made by `python docs/make_guarantees.py` from `layer.guarantees()`; the tests in `tests/` check each
of these on three backends, on random weights and inputs and on those that a search for the worst
case finds (`tests/test_worst_cases.py`).

A promise is about real numbers, finite weights and finite inputs. Its float32 pass keeps it up to
rounding, relative to the largest number on the way, with matrix products in full float32 (no TF32);
where the rounding has a smaller unit, the promise names it, and its number is the limit that the
tests hold it to. A weight of another type than float32 is rounded once more after each constraint.

| layer, as configured | property | promise | number | condition | source |
| --- | --- | --- | ---: | --- | --- |
"""

INTEGRATORS = """
## What each integrator keeps

From `dynzoo.integrators.table()`; `tests/integrators/` measure every order and check
every entry of the last two columns. A Runge-Kutta step with circle-contractivity radius r is
non-expansive on the gradient fields above if h |A|^2 <= 2 r, and no larger step is in general.

| integrator | family | solves | step | order | radius r | keeps |
| --- | --- | --- | --- | --- | ---: | --- |
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _row(cells) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |\n"


def _integrators() -> str:
    text = INTEGRATORS
    for row in integrators.table():
        order = f"{row.order}"
        if row.general_order != row.order:
            order += f" (quadratic I), {row.general_order}"
        radius = row.circle_contractivity_radius
        number = "" if radius is None else f"{radius:.6g}"
        keeps = ", ".join(row.preserves)
        text += _row([f"`{row.name}`", row.family, row.equation, row.solver, order, number, keeps])
    text += "\nAn equation that has one of these, keeps it under the step too:\n\n"
    return text + "".join(f"- {word}: {meaning}\n" for word, meaning in INVARIANTS.items())


def table() -> str:
    """The page in Markdown."""
    text = HEAD
    for name, make in CONFIGURATIONS.items():
        for g in make().guarantees():
            value = "" if g.value is None else f"{g.value:.6g}"
            text += _row([f"`{name}`", g.property, g.statement, value, g.condition, g.source])
    return text + _integrators()


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
