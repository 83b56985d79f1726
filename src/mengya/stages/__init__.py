"""The stages, by name. A module is imported when its stage is used, so that `mengya help` needs no torch."""

MODULES = {
    name: f"mengya.stages.{name}" for name in ("corpus", "tokenizer", "tokenize", "pretrain", "sft", "dpo", "evaluate")
}
"""Each module has `Config`, `run(config, inputs, out)` and, if a crash can be continued, `RESUMABLE = True`.

With `DISTRIBUTED = True` all ranks call `run` together; otherwise rank 0 alone does.
`SCRATCH` may name folders in `out` that only a continued run needs; they are deleted once the manifest is written.
"""
