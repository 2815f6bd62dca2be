"""Decide when a part acts: one `Turn` for each modifier holds what has happened so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsify_torch.loop import Part

NEAR = 1e-9  # epochs are multiples of 1/steps: sums of these miss a bound by rounding


@dataclass
class Turn:
    """Hold one part's schedule.

    end: the epoch that the manager settled, which may precede that of the options. place: in the recipe. yielded: from
    which epoch on which claims are another's.
    """

    name: str
    key: str
    options: Any
    part: Part
    end: float
    place: int = 0
    yielded: list[tuple[float, frozenset[str]]] = field(default_factory=list)
    started: bool = False
    ended: bool = False
    last: float = -1.0

    @property
    def active(self) -> bool:
        """Say whether the part has started and not ended."""
        return self.started and not self.ended

    def advance(self, epoch: float) -> None:
        """Let the part act where it is due."""
        if self.ended or epoch < self.options.start_epoch - NEAR:
            return
        for when, claims in self.yielded:
            if epoch >= when - NEAR:
                self.part.release(claims)
        starting = not self.started
        if starting:
            self.started = True
            self.part.start(epoch)
        ending = 0 <= self.end <= epoch + NEAR
        frequency = getattr(self.options, "update_frequency", -1.0)
        if starting or ending or frequency < 0 or epoch >= self.last + frequency - NEAR:
            self.part.update(epoch)
            self.last = epoch
        if ending:
            self.ended = True
            self.part.end(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state and the part's."""
        return {"started": self.started, "ended": self.ended, "last": self.last, "part": self.part.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.started, self.ended, self.last = state["started"], state["ended"], state["last"]
        self.part.load_state_dict(state["part"])
