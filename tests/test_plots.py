"""Figures show the names that users give, whatever these are."""

import io

import pytest

from dynzoo import plots

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize("name", ["_old", "a$x_{$", "$", "__", "plain"])
def test_names_of_models_are_shown_as_they_are(name):
    models = {name: (0.9, {0.1: 0.5}, {0.1: 0.4}), "other": (0.8, {0.1: None}, {})}
    figure = plots.comparison_figure(models, "l2")
    figure.savefig(io.BytesIO(), format="png")  # where matplotlib reads mathematics
    shown = [text.get_text().lstrip("\N{HAIR SPACE}") for text in figure.axes[0].get_legend().texts]
    escaped = name.replace("$", r"\$")
    assert shown == [f"{escaped}, under attack", f"{escaped}, certified", "other, clean"]
