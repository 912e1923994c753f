"""Judges: what reads a completion, each behind the same interface."""

from es2.judges.base import Judge, Opinion, Reading, Verdict
from es2.judges.classifier import HarmBench, LlamaGuard, WildGuard
from es2.judges.llm import Scav, ScavUseful, StrongReject
from es2.judges.offline import Keywords, Refusal, Rules
from es2.judges.panel import JUDGES, Means, make, make_all

__all__ = [
    "JUDGES",
    "HarmBench",
    "Judge",
    "Keywords",
    "LlamaGuard",
    "Means",
    "Opinion",
    "Reading",
    "Refusal",
    "Rules",
    "Scav",
    "ScavUseful",
    "StrongReject",
    "Verdict",
    "WildGuard",
    "make",
    "make_all",
]
