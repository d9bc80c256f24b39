"""The certificate that travels beside an exported graph, and radii from it with NumPy alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from dynzoo.certificates import margins
from dynzoo.certificates.certificate import Certificate, certify
from dynzoo.certificates.errors import ReferenceMismatchError
from dynzoo.certificates.rounding.bound import RoundingBound, rounding_kinds
from dynzoo.export import certificate_file
from dynzoo.export.certificate_file import CERTIFICATE as CERTIFICATE

__all__ = ["CERTIFICATE", "certificate_of", "numbers_of", "radii"]

_FORMULA = (
    "With the logits z of an image in float64 and i the index of the largest, the answer i does "
    "not change for any perturbation of the image of L2 norm up to r = min over j != i of "
    "(1 - 1e-12) * (z[i] - z[j] - f * e) / (pair_distances[i][j] * (body_lipschitz + body[1]) + "
    "sqrt(2) * head[1]), where e = pair_distances[i][j] * (body[0] + body[1] * s) + "
    "sqrt(2) * (head[0] + head[1] * s) and s is the L2 distance of the image from the constant "
    "image anchors[k]. body and head are column k of rounding.body[kind] and "
    "rounding.head[kind]; f is 2 for the kind worst-case and sqrt(2) for the kind probable. "
    "r is 0 if a numerator is not positive or a logit is not finite, and at most "
    "(arithmetic.largest - peak[0] - peak[1] * s) / peak[1]. The largest r over all k counts, and "
    "over both kinds unless roundings are not taken to be independent (worst-case). Without the "
    "images, s is the largest that image_range allows."
)
_ROUNDING = (
    "What rounding may do to the logits, wherever the graph runs: for IEEE arithmetic rounded to "
    "nearest, sums in any order but the same one for all outputs of a product at one place, "
    "convolutions as sums of products, and factors of products rounded to no fewer bits than "
    "arithmetic.factor_unit says (0: not at all, so neither TF32 nor float16)."
)


def certificate_of(model: keras.Model) -> Certificate | str:
    """The certificate of a model, or the reason why it has none."""
    try:
        return certify(model)
    except (ValueError, ReferenceMismatchError) as error:
        return " ".join(str(error).split())


def numbers_of(
    certificate: Certificate | str, image_range: tuple[float, float] = (0.0, 1.0)
) -> dict[str, Any]:
    """What ``radii`` needs, as plain numbers; or that there is no certificate, and why.

    Args:
        certificate: what ``certificate_of`` returned.
        image_range: smallest and largest number of the images that the graph is made for.

    Example:

    >>> import keras
    >>> import dynzoo
    >>> from dynzoo.export import numbers_of
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> numbers_of(dynzoo.certify(model))["certified"]
    True
    """
    if isinstance(certificate, str):
        return {"certified": False, "reason": certificate}
    return {
        "certified": True,
        "norm": "l2",
        "lipschitz": certificate.lipschitz,
        "body_lipschitz": certificate.body_lipschitz,
        "pair_distances": certificate.pair_distances.tolist(),
        "rounding": certificate.rounding_bound.to_dict(),
        "image_range": [float(value) for value in image_range],
        "image_entries": certificate.image_entries,
        "formula": _FORMULA,
        "rounding_note": _ROUNDING,
        "model_weights_sha256": certificate.weights_sha256,
    }


def radii(
    logits: Any,
    certificate: Mapping[str, Any] | str | os.PathLike,
    images: Any = None,
    rounding: str = "probable",
    model: str | os.PathLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and certified L2 radii from the logits of an exported graph.

    Guarantee: as that of ``Certificate.radii``, for the graph whose hashes the certificate names.
    Of a graph that was changed afterwards, as by quantisation, nothing is certified.

    Args:
        logits: array (n, K) that the exported graph gave for n images.
        certificate: the content of ``certificate.json``, or its path.
        images: the n images. Without them the radii are a little smaller, and hold for images in
            the certificate's ``image_range`` only.
        rounding: what is assumed of roundings, as in ``Certificate.radii``.
        model: the file or folder of the graph that gave the logits. It is read and compared with
            the certificate's hashes, in every call.

    Returns:
        (labels (n,) int64, radii (n,) float64 in the units of the images).

    Raises:
        ValueError: if there is no certificate, a number in it is not one that certificates have,
            the logits are not those of its classes, or ``model`` is another graph.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import dynzoo
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x = np.random.default_rng(0).random((5, 4)).astype("float32")
    >>> certificate = dynzoo.export.numbers_of(dynzoo.certify(model))
    >>> logits = model.predict(x, verbose=0)  # or those of the exported graph
    >>> labels, radii = dynzoo.export.radii(logits, certificate, x)
    """
    if isinstance(certificate, (str, os.PathLike)):
        where, numbers = os.fspath(certificate), certificate_file.read(certificate)
    else:
        where, numbers = "`certificate`", dict(certificate)
    if numbers.get("certified") is not True:
        raise ValueError(f"The model has no certificate: {numbers.get('reason', 'unknown')}")
    certificate_file.check_numbers(numbers, where)
    if model is not None:
        certificate_file.check_graph(model, numbers, where)
    distances = np.asarray(numbers["pair_distances"], dtype=np.float64)
    z = np.asarray(logits)
    if z.ndim != 2 or z.shape[1] != len(distances):
        raise ValueError(
            f"`logits` must have shape (n, {len(distances)}). Received: logits.shape={z.shape}"
        )
    bound = RoundingBound.from_dict(numbers["rounding"])
    if images is None:
        low, high = numbers["image_range"]
        far = bound.farthest(low, high, numbers["image_entries"])
        s = np.broadcast_to(far, (len(z), len(far)))
    else:
        x = np.asarray(images)
        if len(x) != len(z) or x[:1].size != numbers["image_entries"] * len(x[:1]):
            raise ValueError(
                f"`images` must be the {len(z)} images of the logits, with "
                f"{numbers['image_entries']} numbers each. Received: images.shape={x.shape}"
            )
        s = bound.distances(x)
    labels = np.argmax(margins.replaced(z), axis=1).astype(np.int64)
    limits = margins.rounded_limits(
        z, labels, float(numbers["body_lipschitz"]), distances, bound, s, rounding_kinds(rounding)
    )
    return labels, np.maximum(limits.min(axis=1), 0.0)
