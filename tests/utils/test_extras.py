"""Which extra brings a package that is not installed."""

import sys

import pytest

from dynzoo.utils import extras, html
from dynzoo.utils.extras import EXTRAS, MissingExtraError, extra

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_module_is_named_with_its_extra(name, monkeypatch):
    for module in EXTRAS[name].modules:
        monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
        with pytest.raises(MissingExtraError) as error, extra(name):
            __import__(f"{module}.part")
        assert str(error.value) == (
            f"{EXTRAS[name].purpose} need {module}: pip install 'dynzoo[{name}]'"
        )
        assert error.value.__suppress_context__
    with pytest.raises(MissingExtraError, match=", ".join(EXTRAS[name].modules)):
        extras.check(name)


def test_what_is_there_is_not_imported_by_a_check():
    before = set(sys.modules)
    for name in ("plots", "tuning", "parallel"):
        extras.check(name)
    assert not {m.partition(".")[0] for m in set(sys.modules) - before} - {"importlib"}


def test_other_errors_pass():
    """A package of the extra that is there and broken, or one that lacks a package of its own."""
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere'") as error:
        with extra("plots"):
            import nowhere  # noqa: F401
    assert not isinstance(error.value, MissingExtraError)
    with pytest.raises(ZeroDivisionError), extra("plots"):
        _ = 1 / 0


def test_a_picture_that_cannot_be_drawn_is_a_line():
    def draw():
        raise MissingExtraError("Pictures need a <package>.")

    assert html.picture(draw, "alt") == "<p>Pictures need a &lt;package&gt;.</p>"
    assert html.picture(lambda: b"<svg/>", "alt").startswith('<img alt="alt"')
