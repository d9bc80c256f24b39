"""Every public name: what `dynzoo` and its public modules list."""

import importlib
import inspect

MODULES = """
attacks augmentation callbacks certificates constraints corruptions data export integrators layers
losses metrics models operators optimizers regularizers robustness training tuning zoo
""".split()


def public_objects():
    """The classes and functions of the house that a user may import: name -> object, each once."""
    found = {}
    for path in ["dynzoo", *(f"dynzoo.{name}" for name in MODULES)]:
        module = importlib.import_module(path)
        listed = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        for name in listed:
            value = getattr(module, name)
            code = inspect.isclass(value) or inspect.isfunction(value)
            if code and value.__module__.startswith("dynzoo.") and value not in found.values():
                found[f"{path}.{name}"] = value
    return found


def public_methods(name, value):
    """The methods and properties that a public class of the house defines and documents."""
    for key, member in vars(value).items() if inspect.isclass(value) else ():
        target = getattr(member, "__func__", getattr(member, "fget", member))
        if (not key.startswith("_") or key == "__call__") and getattr(target, "__doc__", None):
            if inspect.isfunction(target):
                yield f"{name}.{key}", target


def documented():
    """All of that: name -> what has the docstring."""
    found = public_objects()
    for name, value in list(found.items()):
        found.update(public_methods(name, value))
    return found
