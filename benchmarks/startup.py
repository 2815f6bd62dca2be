"""Time `sparsify --help`, with every plugin installed, against `tox --help`: interleaved, median of the ratios.

python benchmarks/startup.py [RUNS]
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median


def seconds(module: str) -> float:
    """Return the wall time of `python -m MODULE --help`."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", module, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print both medians and the median ratio."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    seconds("sparsify"), seconds("tox")
    pairs = [(seconds("sparsify"), seconds("tox")) for _ in range(runs)]
    ours, theirs = (median(column) for column in zip(*pairs, strict=True))
    ratio = median(own / other for own, other in pairs)
    print(f"sparsify --help {ours:.3f} s, tox --help {theirs:.3f} s, median ratio {ratio:.2f} over {runs} pairs")


if __name__ == "__main__":
    main()
