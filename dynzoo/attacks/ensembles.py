"""Which attacks an evaluation runs: the named ensembles, and what a caller may pass instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dynzoo.attacks.apgd import APGD, TargetedAPGD
from dynzoo.attacks.autoattack import EOT, AutoAttack
from dynzoo.attacks.base import Attack
from dynzoo.attacks.ddn import DDN
from dynzoo.attacks.fab import FAB
from dynzoo.attacks.fgsm import FGSM
from dynzoo.attacks.geometry import NORMS
from dynzoo.attacks.noise import GaussianNoise, UniformNoise
from dynzoo.attacks.pgd import PGD
from dynzoo.attacks.square import Square
from dynzoo.attacks.transfer import Transfer


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


def makers(attacks: Any, norm: str, seed: int, batch_size: int) -> list[Callable[[float], Attack]]:
    """One function ``eps -> Attack`` for each attack that ``dynzoo.evaluate`` was asked for.

    Args:
        attacks: A name, an ``Attack``, a factory called with ``norm``, ``eps`` and ``seed``, or a
            sequence of these. Names are the ensembles ``"standard"``, ``"pgd_margin"`` and
            ``"fast"``, and the single attacks ``"apgd-ce"``, ``"apgd-dlr"``, ``"apgd-margin"``,
            ``"apgd-t"``, ``"fab-t"``, ``"square"``, ``"fgsm"``, ``"pgd"``, ``"ddn"``,
            ``"gaussian"``, ``"uniform"`` and ``"autoattack"``, which is ``"standard"`` in one.
        norm: ``"l2"`` or ``"linf"``.
        seed: seed of attacks that are made here.
        batch_size: batch size of attacks that are made here by name.

    Raises:
        ValueError: if there is no attack, or one is unknown, targeted or of another norm.
    """
    if norm not in NORMS:
        raise ValueError(f"`norm` must be one of {NORMS}. Received: norm={norm!r}")
    common: dict[str, Any] = dict(norm=norm, seed=seed, batch_size=batch_size)
    named: dict[str, Callable[[], list[Attack]]] = {
        "standard": lambda: standard(**common),
        "pgd_margin": lambda: pgd_margin(**common),
        "fast": lambda: fast(**common),
        "apgd-ce": lambda: [APGD(loss="ce", **common)],
        "apgd-dlr": lambda: [APGD(loss="dlr", **common)],
        "apgd-margin": lambda: [APGD(loss="margin", **common)],
        "apgd-t": lambda: [TargetedAPGD(**common)],
        "fab-t": lambda: [FAB(**common)],
        "square": lambda: [Square(**common)],
        "fgsm": lambda: [FGSM(**common)],
        "pgd": lambda: [PGD(**common)],
        "ddn": lambda: [DDN(**common)],
        "gaussian": lambda: [GaussianNoise(**common)],
        "uniform": lambda: [UniformNoise(**common)],
        "autoattack": lambda: [AutoAttack(**common)],
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


def with_draws(attack: Attack, random: bool) -> Attack:
    """The attack, averaging over draws where the model is random and nothing else was asked for."""
    config = attack.get_config()
    if not random or config.get("eot", 0) != 1:
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
        blind = attack.black_box or attack.transferred
        if getattr(attack, "steps", 0) > 1 and not blind:
            return attack
    return None
