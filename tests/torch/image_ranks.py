"""Train as one of several processes, and write the weights: `torchrun image_ranks.py DATA OUT pruning|thinning`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from tests.torch.image_training import fit, pruning, thinning


def main() -> None:
    data, out = map(Path, sys.argv[1:3])
    torch.set_num_threads(1)
    modifiers = {"pruning": pruning, "thinning": thinning}[sys.argv[3]]()
    trained = fit(data, out / "run", modifiers, train_kwargs={"batch_size": 16, "ema": 0.5})
    torch.save(trained.value.state_dict(), out / f"{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
