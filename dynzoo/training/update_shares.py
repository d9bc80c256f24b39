"""The update of a step divided over processes: each updates some of the variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dynzoo.optimizers import RiemannianMuon

__all__ = ["UpdateShares", "cost_of", "dealt", "largest_share"]


# Multiplications in the time of the calls of one kernel's update; by measurement, on a CPU core.
_CALLS = 2 * 10**7


def cost_of(shape: Sequence[int]) -> int:
    """What the seconds of a variable's update go by.

    For a kernel of two axes there are about five products of its Gram matrix to one with the kernel
    itself (``spectral.polar_iteration``), and many calls whatever its size.
    """
    if len(shape) != 2:
        return _CALLS // 4
    short = min(shape)
    return shape[0] * shape[1] * short + 5 * short**3 + _CALLS


def dealt(costs: Sequence[int], processes: int) -> list[int]:
    """The process that takes each piece of work: the largest first, to the one with the least."""
    loads, owners = [0] * processes, [0] * len(costs)
    for k in sorted(range(len(costs)), key=lambda k: (-costs[k], k)):
        owners[k] = loads.index(min(loads))
        loads[owners[k]] += costs[k]
    return owners


def largest_share(shapes: Sequence[Sequence[int]], processes: int) -> float:
    """Of the whole update, of the process that has the most of it; 1 for one process."""
    costs, loads = [cost_of(shape) for shape in shapes], [0] * processes
    for cost, owner in zip(costs, dealt(costs, processes), strict=True):
        loads[owner] += cost
    return max(loads) / sum(costs) if costs else 1.0


class UpdateShares:
    r"""Lets each of $n$ processes make the update of some variables, and hand it to the others.

    With ``RiemannianMuon`` a kernel costs some thirty products of matrices a step, whatever the
    batch, for its polar factor and its constraint: what data-parallel processes would all repeat.
    The variables are dealt out by what they cost, the dearest first. Values and momenta travel in
    one message a process, so all processes end with the bits of the one that computed them.

    Args:
        optimizer: of the compiled model. One of another kind, or one that clips, averages or
            accumulates and so needs all gradients at once, is left to make the whole update.
        rank, processes: of this process, and of how many.
        share: ``share(arrays, source)`` fills the arrays in place with those of process ``source``.
    """

    def __init__(
        self,
        optimizer: Any,
        rank: int,
        processes: int,
        share: Callable[[Sequence[Any], int], None],
    ):
        self._optimizer, self._rank, self._share = optimizer, rank, share
        self._processes = processes
        self._whole = optimizer.apply

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """The optimizer's ``apply``, from the mean of all processes' gradients."""
        optimizer = self._optimizer
        # a subclass may look at all gradients at once
        if type(optimizer) is not RiemannianMuon or not optimizer.separable:
            self._whole(grads, trainable_variables)
            return
        variables = trainable_variables
        if variables is None:
            variables = optimizer._trainable_variables
        pairs = [(g, v) for g, v in zip(grads, variables, strict=True) if g is not None]
        if not optimizer.built:
            optimizer.build(list(variables))
        owners = dealt([cost_of(variable.shape) for _, variable in pairs], self._processes)
        mine = [pair for pair, owner in zip(pairs, owners, strict=True) if owner == self._rank]
        if mine:
            self._whole(*zip(*mine, strict=True))
        else:
            optimizer.iterations.assign_add(1)
        for source in sorted(set(owners)):
            theirs = [v for (_, v), owner in zip(pairs, owners, strict=True) if owner == source]
            self._share([a.value for v in theirs for a in (v, *optimizer.slots_of(v))], source)
