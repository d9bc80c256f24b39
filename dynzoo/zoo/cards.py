"""The model card: what a preset's metadata say, as a page in Markdown."""

from collections.abc import Mapping
from typing import Any

from dynzoo.utils.formatting import duration, percent, radius_text

_CERTIFICATE = (
    "The certificate is a proof about one input at a time: no perturbation whose L2 norm is below "
    "the certified radius changes the prediction. Inputs are images in [{low}, {high}]; the "
    "radius is counted in that scale over all pixels and channels together. It says nothing of "
    "other changes (rotation, blur, new cameras), of L-infinity perturbations beyond what their "
    "L2 norm implies, or of whether the prediction is right in the first place."
)
_TOP5 = (
    "Certified top-5 accuracy is the share of images whose label stays among the five largest "
    "logits under every perturbation up to the radius: at least five classes would have to "
    "overtake it, and each needs a distance of its own."
)
_ATTACKED = (
    "Attacked accuracy is what is left after the listed attacks, hence an upper bound of the true "
    "robust accuracy: a stronger attack can only lower it."
)
_SMOOTHED = (
    "The smoothed classifier answers what the network answers most often under Gaussian noise of "
    "standard deviation {sigma:g} on the pixels (`dynzoo.certificates.smooth`). Its certified "
    "radii are Clopper-Pearson bounds from {samples:,} draws, each wrong with a chance of at most "
    "{alpha:g}. They hold for it, not for the network without noise."
)

_WARNINGS = {
    "crossentropy-only-gap": (
        "The warning `crossentropy-only-gap` says that attacks on the cross-entropy alone would "
        "have left more images right than all attacks together did: do not compare with numbers "
        "of such attacks."
    )
}
_NAMES_SHOWN = 30


def model_card(metadata: Mapping[str, Any]) -> str:
    """Write the model card of a preset in Markdown.

    What the metadata do not say is left out; no number is made up or computed here.

    Args:
        metadata: the content of `metadata.json`. Known keys, all optional:
            `name`, `description`, `dataset`, `system` (what is discretised, for the leaderboard),
            `license`, `limits`, `references` (list): text;
            `resizing` (of pictures of another size); `class_names`: a list of texts;
            `parameters`, `num_classes`, `input_shape`, `input_range`, `lipschitz`: numbers;
            `body_lipschitz`: the bound without the last layer; `audited_slope`: the largest slope
            of the logits that an audit found, at most `lipschitz`;
            `accuracy`: share in [0, 1]; `certified_accuracy`, `attacked_accuracy`: share for each
            L2 radius, such as `{"36/255": 0.61, "0.5": 0.4}`; `top5_accuracy` and
            `certified_top5_accuracy`, the same for the label among the five largest logits;
            `smoothed_accuracy` and `smoothed_certified_accuracy`, the same for the classifier of
            `dynzoo.certificates.smooth`, with `smoothing`: `sigma`, `samples`, `alpha`, `images`;
            `evaluation`: what the numbers were measured on and how (`split`, `images`, `attacks`,
            `command`, ...); `training`: `hardware`, `seconds`, `epochs`, `seed`, `config`,
            `command`, `start` (the preset whose weights it began with), ...; `versions`, `saved`,
            `files`.

    Returns:
        The text of `README.md`.

    Example:

    >>> print(model_card({"name": "small", "dataset": "cifar10", "accuracy": 0.7}))
    """
    name = str(metadata.get("name", "model"))
    sections = [
        f"# {name}",
        str(metadata.get("description") or _what_it_is(metadata)),
        _section("Numbers", _numbers(metadata), _pairs(_evaluation(metadata))),
        _section("Model", _pairs(_model(metadata))),
        _section("Use", _usage(name, metadata)),
        _section("Training", _pairs(metadata.get("training"))),
        _section("What the numbers mean, and what they do not", _limits(metadata)),
        _section("References", "\n".join(f"* {_text(r)}" for r in metadata.get("references", []))),
        _section("Licence", _text(metadata.get("license"))),
        _section("Files", _files(metadata)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, *parts: str) -> str:
    body = "\n\n".join(part for part in parts if part)
    return f"## {title}\n\n{body}" if body else ""


def _what_it_is(metadata: Mapping[str, Any]) -> str:
    dataset = metadata.get("dataset")
    trained = f", trained on {_text(dataset)}" if dataset else ""
    return f"An image classifier for Keras 3 (TensorFlow, JAX, PyTorch){trained}, made with dynzoo."


def _numbers(metadata: Mapping[str, Any]) -> str:
    """One row an L2 radius: clean at 0, then certified and attacked where known."""
    columns = [
        (title, metadata.get(clean), _by_radius(metadata.get(key)))
        for title, clean, key in (
            ("certified accuracy", "accuracy", "certified_accuracy"),
            ("attacked accuracy", "accuracy", "attacked_accuracy"),
            ("certified top-5 accuracy", "top5_accuracy", "certified_top5_accuracy"),
            ("smoothed, certified", "smoothed_accuracy", "smoothed_certified_accuracy"),
        )
        if metadata.get(key)
    ]
    clean = metadata.get("accuracy")
    if not columns:
        return "" if clean is None else f"Accuracy: {percent(clean)}"
    lines = [
        "| L2 radius | " + " | ".join(title for title, _, _ in columns) + " |",
        "|" + " --- |" * (1 + len(columns)),
    ]
    if clean is not None:
        at_zero = ["" if share is None else percent(share) for _, share, _ in columns]
        lines.append(f"| 0 (clean) | {' | '.join(at_zero)} |")
    for radius in sorted({r for _, _, values in columns for r in values}, key=_radius):
        cells = [percent(values[radius]) if radius in values else "" for _, _, values in columns]
        lines.append(f"| {radius} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _evaluation(metadata: Mapping[str, Any]) -> Any:
    evaluation, smoothing = metadata.get("evaluation"), metadata.get("smoothing")
    if not isinstance(evaluation, Mapping) or not isinstance(smoothing, Mapping):
        return evaluation
    return {**evaluation, "smoothing": smoothing}


def _by_radius(values: Mapping[Any, float] | None) -> dict[str, float]:
    return {radius_text(key): float(value) for key, value in (values or {}).items()}


def _radius(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


def _model(metadata: Mapping[str, Any]) -> dict[str, Any]:
    shape = metadata.get("input_shape")
    low, high = metadata.get("input_range") or (0, 1)
    body = metadata.get("body_lipschitz")
    return {
        "data set": metadata.get("dataset"),
        "input": f"{' x '.join(map(str, shape))} in [{low:g}, {high:g}]" if shape else None,
        "pictures of another size": metadata.get("resizing"),
        "classes": metadata.get("num_classes"),
        "class names": _class_names(metadata.get("class_names")),
        "parameters": metadata.get("parameters"),
        "Lipschitz bound (input to logits, L2)": metadata.get("lipschitz"),
        "Lipschitz bound of all before the last layer": None if body is None else f"{body:.8g}",
        "largest slope that an audit found": metadata.get("audited_slope"),
        "saved": metadata.get("saved"),
        "versions": metadata.get("versions"),
    }


def _class_names(names: Any) -> str | None:
    if not names or list(names) == [str(i) for i in range(len(names))]:
        return None
    if len(names) <= _NAMES_SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[:3])}, ... {names[-1]}; all of them in metadata.json"


def _pairs(values: Any) -> str:
    """A list of `key: value`, in the order of the metadata; a plain text stays as it is."""
    if not isinstance(values, Mapping):
        return _text(values)
    lines = []
    for key, value in values.items():
        if key == "seconds" and isinstance(value, (int, float)):
            key, value = "duration", duration(value)
        if value is None or value in ("", []):
            continue
        code = "`" if key == "command" else ""
        lines.append(f"* {str(key).replace('_', ' ')}: {code}{_text(value)}{code}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def usage(name: str, metadata: Mapping[str, Any]) -> list[str]:
    """Lines of Python that load a preset and ask it what can be asked of it.

    A network that `dynzoo.certify` refused has radii as a smoothed classifier, if it was measured
    as one, and labels alone if not.

    Args:
        name: name or address of the preset.
        metadata: its metadata.

    Example:

    >>> usage("mine", {"lipschitz": 1.2})[-1]
    'labels, radii = dynzoo.certify(model).radii(images)  # images: (n, height, width, channels)'
    """
    evaluation = metadata.get("evaluation")
    warnings = (evaluation.get("warnings") if isinstance(evaluation, Mapping) else None) or ()
    smoothed, ask = metadata.get("smoothing"), "labels, radii = dynzoo.certify(model).radii(images)"
    lines = ["import dynzoo", "", f'model = dynzoo.from_preset("{name}")']
    if metadata.get("lipschitz") is None and "not-certified" in warnings:
        ask = "labels = model.predict(images).argmax(axis=1)"
        if isinstance(smoothed, Mapping) and {"sigma", "samples"} <= set(smoothed):
            settings = f"sigma={smoothed['sigma']}, samples={smoothed['samples']}"
            lines.append(f"smoothed = dynzoo.certificates.smooth(model, {settings})")
            ask = "labels, radii = smoothed.radii(images)"
    return [*lines, f"{ask}  # images: (n, height, width, channels)"]


def _usage(name: str, metadata: Mapping[str, Any]) -> str:
    lines = "\n".join(usage(name, metadata))
    return f"""```python
{lines}
```

The model comes compiled: `model.fit` and `model.predict` work at once."""


def _limits(metadata: Mapping[str, Any]) -> str:
    low, high = (f"{v:g}" for v in metadata.get("input_range") or (0, 1))
    warnings = (metadata.get("evaluation") or {}).get("warnings", [])
    certified = metadata.get("certified_accuracy") or metadata.get("lipschitz") is not None
    parts = [
        _CERTIFICATE.format(low=low, high=high) if certified else "",
        _head(metadata) if certified else "",
        _TOP5 if metadata.get("certified_top5_accuracy") else "",
        _ATTACKED if metadata.get("attacked_accuracy") else "",
        _smoothed(metadata),
        *(_WARNINGS[name] for name in warnings if name in _WARNINGS),
        _text(metadata.get("limits")),
    ]
    return "\n\n".join(part for part in parts if part)


def _smoothed(metadata: Mapping[str, Any]) -> str:
    settings = metadata.get("smoothing")
    named = ("sigma", "samples", "alpha")
    if not isinstance(settings, Mapping) or not all(name in settings for name in named):
        return ""
    return _SMOOTHED.format(**{name: settings[name] for name in named})


def _head(metadata: Mapping[str, Any]) -> str:
    """Why the bound may exceed that of the body, where both are known."""
    whole, body = metadata.get("lipschitz"), metadata.get("body_lipschitz")
    if whole is None or body is None or not whole > body * (1 + 1e-9):
        return ""
    return (
        f"All before the last layer is {body:.8g}-Lipschitz. The bound from input to logits, "
        f"{whole:.6g}, is that times the norm of the last layer's matrix, all of whose rows "
        "together stretch more than one of them. Radii do not use it: they take, for each pair of "
        "classes, the length of the difference of their two rows."
    )


def _files(metadata: Mapping[str, Any]) -> str:
    files = metadata.get("files")
    if not files:
        return ""
    rows = [f"| {name} | `{digest}` |" for name, digest in files.items()]
    return "\n".join(["| file | SHA-256 |", "| --- | --- |", *rows])
