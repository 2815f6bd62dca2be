"""Run the program as one of several processes, and write what training ended with: `torchrun image_ranks.py OUT …`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from sparsify import search
from sparsify.__main__ import main
from sparsify_image_classification.training import trainer

from tests.torch.brief import briefly

run_epochs = trainer.run_epochs


def keep(run: Any, stop: Any) -> None:
    run_epochs(run, stop)
    state = {name: value for name, value in run.module.state_dict().items() if isinstance(value, torch.Tensor)}
    torch.save({"module": state, "masks": run.manager.masks}, Path(out) / f"{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    out = sys.argv.pop(1)
    trainer.run_epochs = keep
    search.time_interleaved = briefly
    main()
