"""Defences: what turns a chat model into a hardened one. One file each, named by the method."""

from es2.defences.base import DEFENCES, Defence, Material
from es2.defences.circuit_breakers import CircuitBreakers
from es2.defences.dpl import Dpl
from es2.defences.es2 import Es2, Es2Paper
from es2.defences.es2_safety_sft import Es2SafetySft
from es2.defences.lat import Lat
from es2.defences.repbend import RepBend
from es2.defences.safety_sft import SafetySft

__all__ = [
    "DEFENCES",
    "CircuitBreakers",
    "Defence",
    "Dpl",
    "Es2",
    "Es2Paper",
    "Es2SafetySft",
    "Lat",
    "Material",
    "RepBend",
    "SafetySft",
]
