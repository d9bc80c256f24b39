"""Which attacks an evaluation runs: the named ensembles, and what a caller may pass instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dynzoo.attacks.base import Attack
from dynzoo.attacks.fgsm import FGSM
from dynzoo.attacks.geometry import NORMS
from dynzoo.attacks.pgd import PGD


def standard(norm: str, seed: int = 0, batch_size: int = 256) -> list[Attack]:
    """Margin, three fixed runner-ups, cross-entropy: 100 steps each, the last from random starts.

    The margin breaks nearly all of what can be broken in a 1-Lipschitz network, the runner-ups
    most of the rest; cross-entropy is there for networks whose margin is flat at the image.
    """
    common: dict[str, Any] = dict(norm=norm, seed=seed, steps=100, batch_size=batch_size)
    return [
        PGD(loss="margin", random_start=False, **common),
        PGD(loss="pairwise", random_start=False, restarts=3, **common),
        PGD(loss="ce", random_start=True, **common),
    ]


def fast(norm: str, seed: int = 0, batch_size: int = 256) -> list[Attack]:
    """One run of PGD on the margin, 20 steps from the image itself: for a first look."""
    return [PGD(norm=norm, seed=seed, steps=20, random_start=False, batch_size=batch_size)]


def makers(attacks: Any, norm: str, seed: int, batch_size: int) -> list[Callable[[float], Attack]]:
    """One function `eps -> Attack` for each attack that `dynzoo.evaluate` was asked for.

    Args:
        attacks: A name (`"standard"`, `"fast"`, `"pgd"`, `"fgsm"`), an `Attack`, a factory called
            with `norm`, `eps` and `seed`, or a sequence of these.
        norm: `"l2"` or `"linf"`.
        seed: Seed of attacks that are made here.
        batch_size: Batch size of attacks that are made here by name.

    Raises:
        ValueError: If there is no attack, or one is unknown, targeted or of another norm.
    """
    if norm not in NORMS:
        raise ValueError(f"`norm` must be one of {NORMS}. Received: norm={norm!r}")
    common: dict[str, Any] = dict(norm=norm, seed=seed, batch_size=batch_size)
    named: dict[str, Callable[[], list[Attack]]] = {
        "standard": lambda: standard(**common),
        "fast": lambda: fast(**common),
        "pgd": lambda: [PGD(**common)],
        "fgsm": lambda: [FGSM(**common)],
    }
    single = isinstance(attacks, (str, Attack)) or callable(attacks)
    result: list[Callable[[float], Attack]] = []
    for item in [attacks] if single else list(attacks):
        if isinstance(item, str):
            if item not in named:
                raise ValueError(
                    f"`attacks` must name one of {sorted(named)}. Received: attacks={item!r}"
                )
            result += [attack.at for attack in named[item]()]
        elif isinstance(item, Attack):
            if item.norm != norm or item.targeted:
                raise ValueError(
                    f"`attacks` must be untargeted and of norm={norm!r}. Received: {item!r}"
                )
            result.append(item.at)
        elif callable(item):
            result.append(_from_factory(item, norm, seed))
        else:
            raise ValueError(f"`attacks` must hold names, attacks or factories. Received: {item!r}")
    if not result:
        raise ValueError("`attacks` must hold at least one attack. Received: an empty list")
    return result


def _from_factory(factory: Callable[..., Any], norm: str, seed: int) -> Callable[[float], Attack]:
    def make(eps: float) -> Attack:
        attack = factory(norm=norm, eps=eps, seed=seed)
        if not isinstance(attack, Attack):
            raise ValueError(f"`attacks` factories must return an Attack. Received: {attack!r}")
        return attack

    return make
