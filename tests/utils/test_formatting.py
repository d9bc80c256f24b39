"""Text for people: every docstring's example is what it prints."""

import doctest

import pytest

from dynzoo.utils import formatting

pytestmark = pytest.mark.any_backend


def test_examples():
    found = doctest.testmod(formatting)
    assert found.failed == 0 and found.attempted >= len(formatting.__all__)


def test_radius_keys_are_exact_and_stable():
    for eps in (36 / 255, 0.5, 2**0.5, 1e-3, 1.0, 255 / 255):
        text = formatting.radius_text(eps)
        numerator, _, denominator = text.partition("/")
        assert abs(float(numerator) / float(denominator or 1) - eps) < 1e-12
        assert formatting.radius_text(text) == text
