"""Importing this first makes the tests strict: shapes and types checked, no network, one thread."""

from __future__ import annotations

import os

# Before anything that reads them is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tests run side by side; so do the processes that they start, which take this over.
os.environ["OMP_NUM_THREADS"] = "1"

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# As for static checkers, an int is a float.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
# Before the first import of es2: every annotated shape and type in it is checked.
install_import_hook("es2", "strict.check")
