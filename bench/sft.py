"""Supervised fine-tuning on conversations: ours against trl's SFTTrainer at its best settings, by turns on one clock.

    python bench/sft.py --conversations chats/ [--minutes 3] [--lora] [--contestants ours,peer_packed,…]
        [--out runs/bench-sft]

All train the 26M model (random weights, a tokenizer of 6,400 entries made of the conversations) on the same
conversations with the same template, on the assistant's turns alone, in steps of 8 rows of 512 tokens, AdamW at the
same constant rate. trl has the type that the machine computes and fused AdamW; it packs or pads, compiled or not.
Everybody trains for `--minutes` of its own time; starting, compiling and measuring do not count. The held-out loss, a
supervised token's, is measured by the same code. `--lora`: all with an adapter of rank 16 on a model of the
transformers library. The last line is one of JSON, with the strongest of trl's as the peer.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from contest import SHAPE, Worker, answer, features

LENGTH, ROWS, RATE, HELDOUT_ROWS = 512, 8, 1e-3, 64
SLICE = 5.0
"""Seconds of a turn."""
HELD_OUT = 50
"""One conversation of so many is held out."""
MOST = 20_000
UNCOUNTED = 3
RANK = 16
PEERS: dict[str, dict] = {
    "peer_packed": {"packing": True},
    "peer_packed_compiled": {"packing": True, "torch_compile": True},
    "peer_wrapped": {"packing": True, "packing_strategy": "wrapped"},
    "peer_wrapped_compiled": {"packing": True, "packing_strategy": "wrapped", "torch_compile": True},
    "peer_padded": {},
    "peer_padded_by_length": {
        "per_device_train_batch_size": 2 * ROWS,
        "train_sampling_strategy": "group_by_length",
    },
}
"""trl's settings that differ. "wrapped" cuts the conversations anywhere and lets them attend to one another, which is
fast; by length, twice the rows have about as many supervised tokens a step as packed ones."""
STRONGEST = ("peer_wrapped", "peer_wrapped_compiled", "peer_padded_by_length")
"""Who takes part unless told otherwise: all at once would need more memory than small machines have."""


def prepare(conversations: Path, out: Path) -> None:
    """train.jsonl and heldout.jsonl, the shards of both, and base/, a random model with its tokenizer."""
    import torch

    from mengya.data.conversations import read_conversations
    from mengya.data.intake import Intake
    from mengya.data.readers import Rejected
    from mengya.data.rendering import conversation_example, examples_of, write_examples
    from mengya.model.native.config import ModelConfig
    from mengya.model.native.transformer import CausalLM
    from mengya.text.chat import Chat
    from mengya.text.tokenizer import train_tokenizer

    if (out / "ready").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with Intake(out / "quarantine.jsonl") as intake:
        rows = [row for row in read_conversations([str(conversations)], intake) if not isinstance(row, Rejected)]
    rows = rows[:: max(1, len(rows) // MOST)]
    splits = {"train": [r for i, r in enumerate(rows) if i % HELD_OUT], "heldout": rows[::HELD_OUT]}
    said = [str(message["content"]) for row in splits["train"] for message in row.value]
    chat = Chat(train_tokenizer(said, SHAPE["vocab_size"], 24), "chatml")
    for name, chosen in splits.items():
        lines = (json.dumps({"messages": row.value}, ensure_ascii=False) for row in chosen)
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        examples = examples_of(partial(conversation_example, chat, seq_len=LENGTH), iter(chosen))
        kept = (example for example in examples if not isinstance(example, Rejected))
        write_examples(kept, SHAPE["vocab_size"], out / name, out / "none", 0.0, "no conversation was found")
    model = CausalLM(ModelConfig(**SHAPE))
    model.initialize(torch.Generator().manual_seed(0))
    model.save(out / "base")
    chat.tokenizer.save(out / "base")
    (out / "ready").touch()


def packed(shards: Path, out: Path):
    """The rows of conversations."""
    from mengya.data.packing import PackedGroups
    from mengya.data.shards import Shards
    from mengya.text.tokenizer import Tokenizer

    return PackedGroups(Shards(shards), LENGTH, Tokenizer.load(out / "base").eos_id, 0, 1)


def heldout_loss(model, out: Path) -> float:
    """A supervised token's, in nats."""
    import torch

    from mengya.data.packing import in_order

    total, count = 0.0, 0
    packer = packed(out / "heldout", out)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for batch in in_order(packer, ROWS, HELDOUT_ROWS):
            batch = batch.to(str(model.device))
            hidden = model.hidden(input_ids=batch.input_ids, position_ids=batch.position_ids, starts=batch.starts)[0]
            total += float(model.loss(hidden, batch.labels))
            count += batch.count
    return total / count


def wait(**values: float) -> None:
    """Tell, and go on when it is this process's turn; the end of the line ends it."""
    answer(**values)
    if not sys.stdin.readline():
        raise SystemExit


def train_ours(out: Path, seconds: float, lora: bool) -> None:
    from mengya import runtime
    from mengya.data.packing import BatchSource
    from mengya.model.adapters import Lora
    from mengya.model.load import load_model
    from mengya.train.loop import Guard, fit
    from mengya.train.objectives import language_modeling
    from mengya.train.optimizer import Optim
    from mengya.train.settings import TrainingConfig, engine_for, prepare_model

    peak = runtime.PeakMemory()
    settings = TrainingConfig(seq_len=LENGTH, batch_tokens=ROWS * LENGTH, optim=Optim(lr=RATE))
    how = {"implementation": "transformers", "lora": Lora(r=RANK)} if lora else {}
    model = prepare_model(load_model(out / "base", **how).train(), settings)
    engine = engine_for(model, language_modeling(), settings)
    counts: list[int] = []

    class Counted(BatchSource):
        def __call__(self, step: int) -> list:
            found = super().__call__(step)
            counts.append(sum(batch.count for batch in found))
            return found

    source = Counted(packed(out / "train", out), settings.rows, settings.rows_at_once(1), 0)
    steps = fit(engine, lambda _: 1.0, source, range(10**9), 1.0, Guard())
    taken, spent, begin = 0, 0.0, time.perf_counter()
    for _ in range(UNCOUNTED):
        next(steps)
        taken += 1
    wait(first_steps_seconds=time.perf_counter() - begin)
    supervised = 0
    while spent < seconds:
        begin = time.perf_counter()
        while time.perf_counter() < begin + min(SLICE, seconds - spent):
            next(steps)
            supervised += counts[taken]
            taken += 1
        spent += time.perf_counter() - begin
        if spent < seconds:
            wait(seconds=spent)
    used = peak.device() or peak.host()
    answer(seconds=spent, supervised=supervised, memory=used, heldout_loss=heldout_loss(model.eval(), out))


def train_peer(out: Path, seconds: float, settings: dict, lora: bool) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from mengya import runtime
    from mengya.model.load import load_model

    peak, device = runtime.PeakMemory(), runtime.pick_device()
    torch.manual_seed(0)
    lines = (out / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        {"messages": [{"role": m["role"], "content": m["content"]} for m in json.loads(line)["messages"]]}
        for line in lines
    ]
    supervised = [0]

    class Trainer(SFTTrainer):
        def compute_loss(self, model, inputs, *arguments, **options):
            supervised[0] += int((inputs["labels"][:, 1:] != -100).sum())
            return super().compute_loss(model, inputs, *arguments, **options)

    class Turns(TrainerCallback):
        """The first steps do not count; afterwards a slice at a time, until the time is over."""

        def __init__(self):
            self.spent, self.begin = 0.0, time.perf_counter()

        def on_step_end(self, arguments, state, control, **_):
            now = time.perf_counter()
            if state.global_step == UNCOUNTED:
                wait(first_steps_seconds=now - self.begin)
                supervised[0], self.begin = 0, time.perf_counter()
            elif state.global_step > UNCOUNTED and now - self.begin >= min(SLICE, seconds - self.spent):
                self.spent += now - self.begin
                if self.spent >= seconds:
                    control.should_training_stop = True
                    return
                wait(seconds=self.spent)
                self.begin = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder, max_length=LENGTH, assistant_only_loss=True, **({"per_device_train_batch_size": ROWS} | settings),
            learning_rate=RATE, lr_scheduler_type="constant", optim="adamw_torch_fused", adam_beta2=0.95,
            weight_decay=0.1, bf16=runtime.is_bfloat16_faster(device), use_cpu=device == "cpu", max_steps=100_000,
            gradient_checkpointing=False, save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(out / "base", dtype=torch.float32, attn_implementation="sdpa")
        adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        turns = Turns()
        trainer = Trainer(
            model, arguments, train_dataset=Dataset.from_list(rows), callbacks=[turns],
            processing_class=AutoTokenizer.from_pretrained(out / "base"), peft_config=adapter if lora else None,
        )  # fmt: skip
        turns.begin = time.perf_counter()
        trainer.train()
        used, found = peak.device() or peak.host(), supervised[0]
        trained = trainer.model.merge_and_unload() if lora else trainer.model
        trained.save_pretrained(Path(folder) / "trained")
        loss = heldout_loss(load_model(Path(folder) / "trained"), out)
    answer(seconds=turns.spent, supervised=found, memory=used, heldout_loss=loss)


def compete(names: list[str]) -> dict[str, dict]:
    """What each has told last. All are started, and warm, before the first turn."""
    workers, found = {}, {}
    try:
        for name in names:
            workers[name] = Worker(name)
            first = workers[name].answer()["first_steps_seconds"]
            print(f"{name}: ready, the first {UNCOUNTED} steps took {first:.0f} s", flush=True)
        while len(found) < len(names):
            for name in names:
                if name not in found and "heldout_loss" in (told := workers[name].turn(1)):
                    found[name] = told
    finally:
        for worker in workers.values():
            worker.__exit__()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--conversations", type=Path, required=True, help="a file or folder")
    parser.add_argument("--minutes", type=float, default=3.0, help="of everybody's own time")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--contestants", default=",".join(("ours", *STRONGEST)))
    parser.add_argument("--out", type=Path, default=Path("runs/bench-sft"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    seconds, name = 60 * arguments.minutes, arguments.one
    if name == "ours":
        return train_ours(arguments.out, seconds, arguments.lora)
    if name:
        return train_peer(arguments.out, seconds, PEERS[name], arguments.lora)
    names = arguments.contestants.split(",")
    if unknown := set(names) - {"ours", *PEERS}:
        raise SystemExit(f"--contestants: {', '.join(unknown)} cannot take part; there are ours, {', '.join(PEERS)}")
    if "ours" not in names or len(names) == 1:
        raise SystemExit("--contestants must name ours and at least one peer")
    prepare(arguments.conversations, arguments.out)
    found = compete(names)
    speed = {name: told["supervised"] / told["seconds"] for name, told in found.items()}
    best = max((name for name in names if name != "ours"), key=lambda name: speed[name])
    print(
        json.dumps(
            {
                "ours": round(speed["ours"], 1),
                "peer": round(speed[best], 1),
                "ratio": round(speed["ours"] / speed[best], 3),
                "memory_ratio": round(found["ours"]["memory"] / found[best]["memory"], 3),
                "heldout_loss": round(found["ours"]["heldout_loss"], 4),
                "peer_heldout_loss": round(found[best]["heldout_loss"], 4),
                "strongest": best,
                "supervised_tokens_per_second": {name: round(value, 1) for name, value in speed.items()},
                "memory_bytes": {name: told["memory"] for name, told in found.items()},
                "heldout_losses": {name: round(told["heldout_loss"], 4) for name, told in found.items()},
                "features": features(),
            }
        )
    )


if __name__ == "__main__":
    main()
