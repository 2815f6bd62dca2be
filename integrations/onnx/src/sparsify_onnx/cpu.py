"""Know what this CPU computes INT8 with, and what that means for speed and for accuracy.

x86 CPUs without VNNI multiply uint8 by int8 with `vpmaddubsw`, which adds two neighbouring products in int16 and
saturates: 255 · 127 · 2 = 64,770 becomes 32,767, and accuracy falls without a word (onnxruntime#6004, #5849, #14642).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm")
INT16 = 32_767


def cpu_features() -> tuple[str, ...]:
    """List the INT8-relevant features of this CPU, as the kernel names them; empty where it does not tell."""
    path = Path("/proc/cpuinfo")
    words = path.read_text().split() if path.is_file() else []
    return tuple(name for name in FEATURES if name in words)


def saturates(features: Collection[str]) -> bool:
    """Say whether pairs of INT8 products can overflow: on x86 without VNNI."""
    return not {"avx2", "avx512f"}.isdisjoint(features) and {"avx_vnni", "avx512_vnni"}.isdisjoint(features)


def cpu_sentence(features: Collection[str]) -> str:
    """Say what the CPU's features mean for INT8."""
    if not features:
        return "features unknown; measure with `sparsify benchmark`"
    fast = any("vnni" in name or name in ("amx_int8", "asimddp", "i8mm") for name in features)
    verdict = "fast INT8" if fast else "no INT8 dot product: INT8 may be no faster, and weights keep to -64..64"
    return f"{', '.join(features)} ({verdict})"


def accuracy_note(most: int, features: Collection[str]) -> str:
    """Say in which range weights lie, why, and for which CPUs that makes the measured accuracy hold."""
    span = f"weights in -{most}..{most}: "
    if 2 * most * 255 <= INT16:
        why = "this CPU has no VNNI, where pairs of larger ones would saturate" if saturates(features) else ""
        return f"{span}{why or 'no pair saturates'}; the accuracy holds on x86 CPUs with and without VNNI"
    if saturates(features):
        return f"{span}this CPU has no VNNI, where such pairs can saturate; set QuantizationModifier's `reduce_range`"
    here = ", ".join(features) or "features unknown"
    return f"{span}the accuracy is that of this CPU ({here}); for x86 CPUs without VNNI use `reduce_range`"
