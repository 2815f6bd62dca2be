"""A tiny network for the program in a subprocess; FAULT="RANK CALL WHAT" breaks one of its training steps.

It is written into a folder of its own and imported from there, as a user's is.
"""

from __future__ import annotations

import os
import signal

from torch import Tensor, is_grad_enabled, nn


class Net(nn.Sequential):
    """Convolutions and a linear layer, for images of three channels."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        if self.training and is_grad_enabled():
            self.calls += 1
            rank, call, what = os.environ.get("FAULT", "- 0 -").split()
            if (rank, int(call)) == (os.environ.get("RANK"), self.calls):
                if what == "nan":
                    return output * float("nan")
                os.kill(os.getpid(), signal.Signals[what])
        return output
