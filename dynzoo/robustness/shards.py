"""An evaluation's images in parts, each attacked by itself: in processes here, or on many machines.

Which images a part has depends on their number and that of the parts alone, and what falls in it on
its own images. So the outcomes are those of the plan, whoever computes them: one process, two, or a
cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynzoo.attacks.base import Attack, check_labels
from dynzoo.inference import packed as packed_models
from dynzoo.inference.answers import answers
from dynzoo.inference.draws import Draws
from dynzoo.inference.packed import Packed
from dynzoo.inference.passes import mean_logits, noise
from dynzoo.robustness.campaign import Campaign, Found
from dynzoo.robustness.outcomes import Outcomes
from dynzoo.robustness.refutation import refute

__all__ = [
    "Packed",
    "Shard",
    "attack_packed",
    "attack_shard",
    "default_shards",
    "labels_of",
    "merge",
    "pack",
    "ranges",
]

# Images in a part at least, and parts at least where there are that many images.
_LEAST_IMAGES, _LEAST_SHARDS = 25, 8


def default_shards(images: int, batch_size: int) -> int:
    """How many parts so many images make: eight of 25 or more, more where a batch is smaller."""
    return max(-(-images // batch_size), min(_LEAST_SHARDS, -(-images // _LEAST_IMAGES)))


def ranges(images: int, shards: int) -> list[range]:
    """The rows of each part: one after another, of sizes that differ by one at most.

    Raises:
        ValueError: if there are fewer images than parts.

    Example:

    >>> ranges(10, 3)
    [range(0, 3), range(3, 6), range(6, 10)]
    """
    if shards > images:
        raise ValueError(f"`shards` must be at most the number of images, {images}. Received: "
                         f"shards={shards}")  # fmt: skip
    ends = [images * number // shards for number in range(shards + 1)]
    return [range(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)]


@dataclass
class Shard:
    """Some of the images, and all that attacking them takes but for the model and the attacks.

    Args:
        first: number of its first image.
        x: images, as the caller gave them.
        y: labels.
        correct: bool array: right without an attack.
        skip: bool array (radii, images): needs no attack, or ``None``.
        skip_from: number of the first attack that leaves those out.
        cert_labels: labels that the certificate vouches for, or ``None``.
        radii: certified radii by their norm; empty where there is no certificate.
        eps: radii of the attacks.
        batch_size: images at once.
        seed: of the evaluation.
        repeats: how many images that fell are tried in each larger ball.
        about: what is evaluated, for the checkpoint.
        checkpoint: file, or ``None``.
    """

    first: int
    x: Any
    y: np.ndarray
    correct: np.ndarray
    skip: np.ndarray | None
    skip_from: int
    cert_labels: np.ndarray | None
    radii: Mapping[str, np.ndarray]
    eps: list[float]
    batch_size: int
    seed: int
    repeats: int
    about: dict[str, Any]
    checkpoint: str | os.PathLike[str] | None = None


def attack_shard(
    model: Any,
    attacks: Sequence[Sequence[Attack]],
    shard: Shard,
    tick: Callable[[Campaign], None] | None = None,
) -> Found:
    """All attacks at all radii on the images of a part that still resist.

    Raises:
        CertificateViolation: if an attack refutes the certificate.
        ValueError: if the checkpoint is damaged, or of another evaluation.
    """
    seen = shard.x.astype(np.float32, copy=False)  # as the model sees them

    def judge(attack: Attack, rows: np.ndarray) -> tuple[Any, Any]:
        y = shard.y[rows]
        points = attack(model, shard.x[rows], y, indices=rows + shard.first)
        labels = labels_of(model, points, y, shard.batch_size, shard.seed)
        if shard.cert_labels is not None:
            refute(seen, points, rows, labels, shard.cert_labels, shard.radii, shard.first)
        return points, labels

    campaign = Campaign(
        attacks,
        shard.eps,
        shard.y,
        shard.correct,
        judge,
        skip=shard.skip,
        skip_from=shard.skip_from,
        batch_size=shard.batch_size,
        repeats=shard.repeats,
        about=shard.about,
        checkpoint=shard.checkpoint,
        tick=tick,
    )
    campaign.run()
    return campaign.found()


def labels_of(model: Any, x: np.ndarray, y: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """Labels by the mean logits, over draws that no attack with this seed has seen."""
    with noise(model, x, batch_size, seed + 1):
        logits = mean_logits(model, x, batch_size)
    check_labels(y, logits.shape[1])
    return answers(logits)


def merge(found: Sequence[Found], shards: Sequence[range]) -> Found:
    """The parts as one: their images one after another, times and counts in sums."""
    parts = [part.outcomes for part in found]

    def together(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    outcomes = Outcomes(
        attacks=parts[0].attacks,
        eps=parts[0].eps,
        correct=together("correct"),
        attacked=together("attacked"),
        broken=together("broken"),
        seconds=np.sum([part.seconds for part in parts], axis=0),
        passes=np.sum([part.passes for part in parts], axis=0),
    )
    repeated = np.sum([part.repeated for part in found], axis=0)
    fooled: list[list[tuple[int, int, np.ndarray]]] = [[] for _ in outcomes.eps]
    for part, rows in zip(found, shards, strict=True):
        for radius, some in enumerate(part.fooled):
            fooled[radius] += [(row + rows.start, label, point) for row, label, point in some]
    return Found(outcomes, repeated, [some[: Found.KEPT] for some in fooled])


# --- in other processes ---


def pack(model: Any, attacks: Sequence[Sequence[Attack]], seed: int) -> Packed:
    """A model and its attacks for ``attack_packed``; the same bytes for all workers.

    Raises:
        ValueError: if the model cannot be sent to another process.
    """
    sources = [getattr(attack, "source_model", None) for row in attacks for attack in row]
    return packed_models.pack((model, attacks), [model, *sources], seed)


def attack_packed(packed: Packed, shard: Shard) -> Found:
    """``attack_shard`` of a packed model, in a process of its own.

    Raises:
        ValueError: if the process runs another backend, or does not know a class of the model's.
    """
    # The classes of models are registered where they are imported.
    import dynzoo.layers
    import dynzoo.models  # noqa: F401

    model, attacks = packed_models.unpacked(packed)
    with Draws(model, packed.seed):
        return attack_shard(model, attacks, shard)
