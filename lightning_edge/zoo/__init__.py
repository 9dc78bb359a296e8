"""Models and data for real work that need no download.

Nothing in here knows about devices: these are ordinary LightningModules and LightningDataModules,
to use as they are or as an example for your own.
"""

from __future__ import annotations

from lightning_edge.zoo.byte_gpt import ByteGPT
from lightning_edge.zoo.causal_lm import CausalLM
from lightning_edge.zoo.digits import Digits, DigitsClassifier
from lightning_edge.zoo.docstrings import Docstrings
from lightning_edge.zoo.sequence_classifier import SequenceClassifier
from lightning_edge.zoo.tables import LabelledText
from lightning_edge.zoo.text import StandardLibrary, TextFiles
from lightning_edge.zoo.tokens import TokenFiles

__all__ = [
    "ByteGPT",
    "CausalLM",
    "Digits",
    "DigitsClassifier",
    "Docstrings",
    "LabelledText",
    "SequenceClassifier",
    "StandardLibrary",
    "TextFiles",
    "TokenFiles",
]
