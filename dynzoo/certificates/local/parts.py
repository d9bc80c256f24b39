"""Balls of a local certificate a few at a time: in turn, or in processes of their own.

Which images are bounded together depends on their number and the model alone, whoever does it: a
product of matrices of another size may round otherwise. The global bound, the logits and what is
known of their rounding come from the calling process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dynzoo.certificates.certificate import certify
from dynzoo.inference.packed import Packed, pack, unpacked
from dynzoo.utils.jobs import run_jobs

if TYPE_CHECKING:
    from dynzoo.certificates.local.movement_certificate import LocalCertificate

__all__ = ["in_chunks", "in_parts", "sent"]

Array = np.ndarray

# Parts at least, and images in a part at least: where there are few, each process has some.
_PARTS, _IMAGES = 8, 4
# How far numbers of the same model may be apart that two processes have found.
_SAME = 1e-9


def in_chunks(rows: Array, at_once: int) -> list[Array]:
    """Row numbers in parts of at most so many, and of fewer where there would be few parts."""
    at_once = max(1, min(at_once, max(_IMAGES, -(-len(rows) // _PARTS))))
    return [rows[i : i + at_once] for i in range(0, len(rows), at_once)]


def in_parts(
    local: LocalCertificate,
    name: str,
    chunks: Sequence[Array],
    task: Callable[[Array], tuple[Any, ...]],
    jobs: int | None,
) -> Iterator[tuple[Array, Any]]:
    """What a method of a certificate finds for each chunk of images, with the chunk.

    Args:
        local: the certificate, which is told of images that are done.
        name: of the method.
        chunks: row numbers.
        task: from a chunk to the arguments of the method.
        jobs: number of processes; ``None`` or 1 for this one.
    """
    if jobs in (None, 1) or len(chunks) < 2:
        for chunk in chunks:
            found = getattr(local, name)(*task(chunk))
            local._tell(len(chunk))
            yield chunk, found
        return
    heard: set[str] = set()

    def finished(number: int, result: tuple[Any, list[tuple[type[Warning], str]]]) -> None:
        local._tell(len(chunks[number]))
        for kind, words in result[1]:
            if words not in heard:
                heard.add(words)
                warnings.warn(words, kind, stacklevel=2)

    packed = local._packed()
    results = run_jobs(
        _answer,
        [partial(_with, packed, name, task, chunk) for chunk in chunks],
        jobs,
        finished=finished,
        environment={"KERAS_BACKEND": packed.backend},
    )
    yield from zip(chunks, (result[0] for result in results), strict=True)


def _with(
    packed: Packed, name: str, task: Callable[[Array], tuple[Any, ...]], chunk: Array
) -> tuple[Any, ...]:
    return packed, name, task(chunk)


def sent(local: LocalCertificate, settings: dict[str, Any]) -> Packed:
    """A certificate on its way to other processes: its model, its settings and what it claims."""
    return pack(_Sent(local, settings), [local._model])


class _Sent:
    """A model and how it was certified; the certificate is made anew where it is asked for."""

    def __init__(self, local: LocalCertificate, settings: dict[str, Any]):
        self.kind, self.model, self.settings = type(local), local._model, settings
        self.assumed = local.certificate.assumed
        self.claimed = _claims(local)

    @cached_property
    def local(self) -> LocalCertificate:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # who certified the model has heard them
            made = self.kind(certify(self.model, self.assumed), self.model, **self.settings)
        claimed = _claims(made)
        if not all(
            one.shape == other.shape and np.abs(one - other).max() <= _SAME * np.abs(one).max()
            for one, other in zip(self.claimed, claimed, strict=True)
        ):
            raise ValueError(
                f"A worker cannot make model {self.model.name!r} as it was certified: something "
                "that it computes with is not in its configuration or its weights. Leave `jobs` out"
            )
        return made


def _claims(local: LocalCertificate) -> tuple[Array, Array]:
    """Numbers that two certificates of one model share: the global bound, and all at an image."""
    certificate, unrolled = local.certificate, local._unrolled
    image = np.random.default_rng(0).random((1, *unrolled.shapes[0]))
    sizes = [np.linalg.norm(value) for value in unrolled.values(image)]
    norms = [getattr(node.op, "norm", 1.0) for node in unrolled.nodes]
    bounds = [certificate.lipschitz, *certificate.pair_distances.ravel()]
    return np.array(bounds), np.array([*sizes, *norms])


def _answer(
    packed: Packed, name: str, task: tuple[Any, ...]
) -> tuple[Any, list[tuple[type[Warning], str]]]:
    """What the method finds in a process of its own, and what it warned of."""
    # The classes of models are registered where they are imported.
    import dynzoo.layers
    import dynzoo.models  # noqa: F401

    local = unpacked(packed).local
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        found = getattr(local, name)(*task)
    return found, [(warning.category, str(warning.message)) for warning in told]
