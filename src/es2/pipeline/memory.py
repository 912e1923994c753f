"""How much memory a stage took at the most: the accelerators' or, without one, the process's."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_REFERENCES, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """The peak from where this is made, and not of what the process did before.

    Where a kernel does not let a process forget its peak, what was before counts too.
    """

    def __init__(self) -> None:
        self._devices = range(torch.cuda.device_count())
        for device in self._devices:
            torch.cuda.reset_peak_memory_stats(device)
        with suppress(OSError):
            _REFERENCES.write_text("5")

    def megabytes(self) -> float:
        """Over all accelerators what tensors took; without one, what the process held."""
        if self._devices:
            return sum(torch.cuda.max_memory_allocated(device) for device in self._devices) / 2**20
        try:
            lines = _STATUS.read_text().splitlines()
        except OSError:
            unit = 2**20 if sys.platform == "darwin" else 2**10
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
