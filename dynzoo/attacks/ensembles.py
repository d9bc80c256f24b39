"""Which attacks an evaluation runs: the named ensembles, and what a caller may pass instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dynzoo.attacks import ATTACKS
from dynzoo.attacks.apgd import APGD
from dynzoo.attacks.autoattack import EOT, AutoAttack
from dynzoo.attacks.base import Attack
from dynzoo.attacks.geometry import NORMS
from dynzoo.attacks.pgd import PGD
from dynzoo.attacks.transfer import Transfer
from dynzoo.utils.arguments import one_of


def standard(norm: str, seed: int = 0, batch_size: int = 256) -> list[Attack]:
    """The members of the standard version of ``AutoAttack``, each to be recorded by itself."""
    return AutoAttack(norm=norm, seed=seed, batch_size=batch_size).members()


def pgd_margin(norm: str, seed: int = 0, batch_size: int = 256) -> list[Attack]:
    """Margin, three fixed runner-ups, cross-entropy: PGD of 100 steps, the last randomly started.

    The margin breaks nearly all of what can be broken in a 1-Lipschitz network, the runner-ups
    most of the rest; cross-entropy is there for networks whose margin is flat at the image. It
    takes a small part of the time of ``standard``.
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


# Name -> members, from the norm, the seed and the batch size.
ENSEMBLES: dict[str, Callable[..., list[Attack]]] = {
    "standard": standard,
    "pgd_margin": pgd_margin,
    "fast": fast,
}


def makers(attacks: Any, norm: str, seed: int, batch_size: int) -> list[Callable[[float], Attack]]:
    """One function ``eps -> Attack`` for each attack that ``dynzoo.evaluate`` was asked for.

    Args:
        attacks: a name, an ``Attack``, a factory called with ``norm``, ``eps`` and ``seed``, or a
            sequence of these. Names are those of ``ENSEMBLES``, and of the single attacks in
            ``dynzoo.attacks.ATTACKS``, of which ``"autoattack"`` is ``"standard"`` in one.
        norm: ``"l2"`` or ``"linf"``.
        seed: seed of attacks that are made here.
        batch_size: batch size of attacks that are made here by name.

    Raises:
        ValueError: if there is no attack, or one is unknown, targeted or of another norm.
    """
    one_of("norm", norm, NORMS)
    common: dict[str, Any] = dict(norm=norm, seed=seed, batch_size=batch_size)
    single = isinstance(attacks, (str, Attack)) or callable(attacks)
    result: list[Callable[[float], Attack]] = []
    for item in [attacks] if single else list(attacks):
        if isinstance(item, str):
            result += [attack.at for attack in _named(item, common)]
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


def _named(name: str, common: dict[str, Any]) -> list[Attack]:
    if name not in ENSEMBLES and name not in ATTACKS:
        names = ", ".join(map(repr, (*ENSEMBLES, *ATTACKS)))
        raise ValueError(f"`attacks` must name one of {names}. Received: attacks={name!r}")
    return ENSEMBLES[name](**common) if name in ENSEMBLES else [ATTACKS[name](**common)]


def _from_factory(factory: Callable[..., Any], norm: str, seed: int) -> Callable[[float], Attack]:
    def make(eps: float) -> Attack:
        attack = factory(norm=norm, eps=eps, seed=seed)
        if not isinstance(attack, Attack):
            raise ValueError(f"`attacks` factories must return an Attack. Received: {attack!r}")
        return attack

    return make


def with_draws(attack: Attack, random: bool) -> Attack:
    """The attack, averaging over draws where the model is random and nothing else was asked for."""
    config = attack.get_config()
    if not random or "eot" not in config or attack.eot != 1:
        return attack
    return type(attack)(**{**config, "eot": EOT})


def transfer_from(source: Any, norm: str, seed: int, batch_size: int) -> Callable[[float], Attack]:
    """Makes the attack that tries on a model what fools another one."""

    def make(eps: float) -> Attack:
        return Transfer(APGD(norm, eps, seed, loss="margin", batch_size=batch_size), source)

    return make


def gradient_attack(attacks: Sequence[Attack]) -> Attack | None:
    """The first attack that uses the gradients of the model itself."""
    for attack in attacks:
        if attack.uses_gradients and attack.steps > 1:
            return attack
    return None
