"""The peak of a stage is its own."""

from __future__ import annotations

import os

import pytest
import torch

from es2.pipeline.memory import PeakMemory

MEGABYTES = 200


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks are for ever here"
)
def test_a_stage_does_not_inherit_the_peak_of_the_one_before_it() -> None:
    if torch.cuda.is_available():
        pytest.skip("measures the accelerator")
    first = PeakMemory()
    before = first.megabytes()
    block = torch.ones(MEGABYTES, 2**18)
    del block
    peak = first.megabytes()
    assert peak > before + 0.9 * MEGABYTES
    assert PeakMemory().megabytes() < peak - 0.9 * MEGABYTES
