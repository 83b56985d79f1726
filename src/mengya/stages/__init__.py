"""The stages, by name, in the order in which a recipe usually has them.

Each module has a STAGE, and is imported when its stage is used, so that `mengya help` needs no torch. A new stage is a
new file and an entry here.
"""

import importlib

from mengya.stage import Stage

_NAMES = ("corpus", "tokenizer", "tokenize", "pretrain", "sft", "dpo", "merge", "evaluate")
MODULES = {name: f"mengya.stages.{name}" for name in _NAMES}


def load_stage(name: str) -> Stage:
    """The stage of this name, which must be one of MODULES."""
    return importlib.import_module(MODULES[name]).STAGE
