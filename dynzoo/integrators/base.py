"""What every one-step method declares beside its own fields."""

from __future__ import annotations

__all__ = ["OneStepMethod"]


class OneStepMethod:
    """Defaults of what only some methods state.

    A method has ``name``, ``family``, ``equation``, ``solver``, ``order``, ``preserves`` and
    ``source`` of its own; see `dynzoo.integrators.registry`.
    """

    @property
    def general_order(self) -> int:
        """Order where it is lower outside the setting of ``order``."""
        return self.order  # type: ignore[attr-defined]

    @property
    def circle_contractivity_radius(self) -> float | None:
        """r of a Runge-Kutta method; no other has one."""
        return None
