"""What makers publish of GPUs: the numbers that estimates of time and memory are made from.

Sources: the makers' data sheets (NVIDIA A100, H100, H200, L40S) and the Ada architecture's white paper
(GeForce RTX 4090). Arithmetic is dense, without structured sparsity, for which data sheets give the
double.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from es2.errors import Es2Error


@dataclass(frozen=True)
class Gpu:
    """One GPU's published numbers.

    Attributes:
        name: in full.
        half: FLOP/s in bfloat16 or float16 with tensor cores, accumulating in float32.
        single: FLOP/s in float32 without tensor cores.
        memory: bytes.
        bandwidth: bytes a second between memory and chip.
    """

    name: str
    half: float
    single: float
    memory: float
    bandwidth: float


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        "a100-40gb": Gpu("A100 40 GB", 312e12, 19.5e12, 40e9, 1.555e12),
        "a100-80gb": Gpu("A100 SXM 80 GB", 312e12, 19.5e12, 80e9, 2.039e12),
        "h100": Gpu("H100 SXM 80 GB", 989e12, 67e12, 80e9, 3.35e12),
        "h200": Gpu("H200 SXM 141 GB", 989e12, 67e12, 141e9, 4.8e12),
        "l40s": Gpu("L40S 48 GB", 362e12, 91.6e12, 48e9, 0.864e12),
        "rtx4090": Gpu("RTX 4090 24 GB", 165e12, 82.6e12, 24e9, 1.008e12),
    }
)
"""Those that plans can be made for, by the name that `--gpu` takes."""


def gpu_named(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        Es2Error: if there is none.
    """
    if name not in GPUS:
        raise Es2Error(f"unknown GPU {name!r}; there are {', '.join(GPUS)}")
    return GPUS[name]
