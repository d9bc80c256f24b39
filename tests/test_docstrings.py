"""One dialect for the docstrings of all public names; CONTRIBUTING.md says what it is."""

import inspect
import re

import pytest
from public_names import MODULES, documented, public_objects

pytestmark = pytest.mark.any_backend

ORDER = ["Args", "Attributes", "Returns", "Raises", "Example", "Reference"]
OBJECTS = public_objects()
# Words with a capital that may begin the description of an argument.
NAMES = {"Gaussian", "Gram", "Keras", "Lipschitz"}


def sections(text):
    """The headings of a docstring, in turn, each with the lines below it."""
    found = []
    for line in text.splitlines():
        heading = re.match(r"(\w+):", line)
        if heading and heading[1] in ORDER:
            found.append((heading[1], []))
        elif found:
            found[-1][1].append(line)
    return found


def entries(text, heading):
    """(name, description) of each entry of a section; `a, b: ...` are two."""
    found = []
    for line in dict(sections(text)).get(heading, []):
        entry = re.match(r"    (?! )([\w*., ]+): (.+)", line)
        if entry:
            found += [(name.strip(" *"), entry[2]) for name in entry[1].split(",")]
        elif line and not line.startswith(" "):
            break
    return found


def parameters(function):
    """What a caller may give: not `self`, nor what is passed on to a base class."""
    kinds = inspect.signature(function).parameters.values()
    passed_on = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in kinds if p.name not in ("self", "cls") and p.kind not in passed_on]


def arguments(value):
    """Those to document, and those that may be documented: a base class of the house has them."""
    if not inspect.isclass(value):
        return parameters(value), ["kwargs", *parameters(value)]
    house = [c for c in value.__mro__ if c.__module__.startswith("dynzoo.")]
    makers = [vars(c)["__init__"] for c in house if "__init__" in vars(c)]
    own = parameters(makers[0]) if makers else []
    return own, ["kwargs", *(name for maker in makers for name in parameters(maker))]


def attributes(value):
    """Fields, properties, and what a constructor sets."""
    known = {*dir(value), *getattr(value, "__annotations__", {})}
    for line in re.findall(r"^ *(self\..*) = ", inspect.getsource(value), re.M):
        known |= set(re.findall(r"self\.(\w+)", line))
    return known


def problems_of_form(text):
    first, _, rest = text.partition("\n")
    if not first.endswith((".", ":")) or rest and not rest.startswith("\n"):
        yield f"begins with one line, a sentence, and an empty one, not with {first!r}"
    headings = [heading for heading, _ in sections(text)]
    if headings != sorted(set(headings), key=ORDER.index):
        yield f"has its sections in the order {headings}"
    prose = [p for p in text.split("\n\n") if not p.lstrip().startswith(">>>")]
    single = re.findall(r"`[^`]*`?", re.sub(r"``[^`]+``", "", "\n\n".join(prose)))
    if single:
        yield f"has code in single backticks: {single}"
    for heading in ("Args", "Attributes", "Raises"):
        for name, description in entries(text, heading):
            capital = re.match(r"[A-Z][a-z]+\b", description)
            if capital and capital[0] not in NAMES:
                yield f"begins a description with a capital: {name}: {description}"


def problems_of_content(name, value, text):
    names = [entry for entry, _ in entries(text, "Args")]
    exception = inspect.isclass(value) and issubclass(value, Exception)
    # what dynzoo makes documents its attributes, and who makes it documents the arguments
    made = [entry for entry, _ in entries(text, "Attributes")]
    needed, allowed = ([], []) if made or exception else arguments(value)
    if name not in OBJECTS and not names:
        needed = []
    for wrong, what in (
        ([n for n in needed if n not in names], "does not document"),
        ([n for n in names if n not in allowed], "documents what it does not take:"),
        ([n for n in names if names.count(n) > 1], "documents more than once"),
        ([n for n in made if n not in attributes(value)], "has no attributes"),
    ):
        if wrong:
            yield f"{what} {', '.join(wrong)}"
    if name in OBJECTS and not exception and "\nExample:\n\n>>> " not in text:
        yield "has no example"


def problems_of_flow(text):
    if "$$" not in text or not re.search(r"\\leftarrow|y\^\+|x_\+|\\Phi_h", text):
        yield "does not state its equation and its step"
    if not re.search(r"^Guarantee( \(.*?\))?:", text, re.M):
        yield "does not state its guarantee"
    if "\nReference: " not in text:
        yield "does not name its source"


@pytest.mark.parametrize("module", ["dynzoo", *(f"dynzoo.{name}" for name in MODULES)])
def test_dialect(module):
    found = []
    for name, value in documented().items():
        if ".".join(name.split(".")[:2]) != module and (module, name.count(".")) != ("dynzoo", 1):
            continue
        text = inspect.cleandoc(value.__doc__ or "")
        problems = [*problems_of_form(text), *problems_of_content(name, value, text)]
        if name.endswith(("Flow", "GraphDiffusion")):
            problems += problems_of_flow(text)
        found += [f"{name} {problem}" for problem in problems]
    assert not found, "\n".join(found)
