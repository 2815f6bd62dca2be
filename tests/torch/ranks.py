"""Train as one of several processes, and write the masks: `python ranks.py RANK SIZE MEETING OUT DDP`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.torch.loops import EVERY, attach, batches, net, sgd, train


def main() -> None:
    rank, size, meeting, out, parallel = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    found = {}
    for name in ("gm", "movement", "obs", "rigl", "acdc", "constant"):
        # without DistributedDataParallel the ranks' weights differ: their masks may not
        module = net(seed=0 if parallel == "ddp" else rank)
        runner = torch.nn.parallel.DistributedDataParallel(module) if parallel == "ddp" else module
        manager, optimizer = attach(EVERY[name], runner, sgd(module))
        train(runner, optimizer, batches(13, seed=rank))
        manager.finalize(module)
        found[name] = {"masks": manager.masks, "weights": module.state_dict()}
    torch.save(found, Path(out) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
