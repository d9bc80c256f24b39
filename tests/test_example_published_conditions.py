"""What docs/what-we-found.md says of published rules, as the script computes it."""

import math
import sys
from pathlib import Path

import pytest
from helpers import load_script

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "published_conditions.py"


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


@pytest.mark.any_backend
def test_the_published_factor_is_a_bound_and_not_sharp(script):
    found = script.gradient_step(trials=300)
    published, sharp = found.pop("largest expansive step: published, sharp")
    assert (published, sharp) == pytest.approx((2 / math.sqrt(3) - 1, 2.0), rel=1e-3)
    for published, measured in found.values():
        assert measured < published
    assert [round(measured, 2) for _, measured in found.values()] == [0.75, 0.5, 0.33]


@pytest.mark.any_backend
def test_a_step_whose_sign_is_dropped_expands(script):
    small, small_signed, large, large_signed = script.flexible_steps().values()
    assert small == small_signed < 1
    assert (large, large_signed) == pytest.approx((0.945**2 * 2.9, 0.945**2 * 0.9))


@pytest.mark.any_backend
def test_the_published_euler_step_is_far_above_the_one_that_contracts(script):
    found = script.damped_euler(draws=20)
    least, median = found["Jacobian of the first Euler step: least, median"]
    assert 1 < least < median
    assert found["rate in continuous time, least"] > 0
    assert 0 < found["largest step that contracts for all inputs, median"] < 1e-4


@pytest.mark.any_backend
def test_nothing_is_left_of_the_rate_at_the_least_damping(script):
    for boundary, twice in script.boundary_damping().values():
        assert abs(boundary) < 1e-6 and twice < -1e-3
    assert next(iter(script.boundary_damping().values()))[0] > 0


@pytest.mark.any_backend
def test_a_diffusion_on_a_hub_leaves_its_range_above_the_limit(script):
    (_, _, few), (least, _, some), (_, most, many) = script.diffusion_on_a_star().values()
    assert many < some < 0.35 < few
    assert least < 0 and most > 1000


@pytest.mark.any_backend
def test_scaled_outputs_are_no_gradient(script):
    scaled, gradient = script.regression_field().values()
    assert gradient < 1e-12 < 0.1 < scaled


def test_a_normalised_kernel_is_no_normalised_convolution(script):
    (growth,) = script.spectral_normalization().values()
    assert 2.9 < growth < 3


@pytest.mark.any_backend
def test_names_are_checked(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["published_conditions.py", "gradient_steps"])
    with pytest.raises(SystemExit):
        script.main()
    assert "no rule is called gradient_steps" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["published_conditions.py", "regression_field"])
    script.main()
    assert capsys.readouterr().out.startswith("regression_field: ")
