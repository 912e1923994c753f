"""Prompts: the sets es2 ships, public sets, users' files, and what two sets share."""

from es2.data.overlap import Overlap, find_overlap, find_repeats
from es2.data.sources import BUNDLED, PUBLIC, Prompt, PublicSet, load_prompts, split_classes

__all__ = [
    "BUNDLED",
    "PUBLIC",
    "Overlap",
    "Prompt",
    "PublicSet",
    "find_overlap",
    "find_repeats",
    "load_prompts",
    "split_classes",
]
