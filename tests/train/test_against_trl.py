"""Preference optimization against trl's own trainer: the same pairs, the same loss and gradients."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from mengya.data.packing import PackedGroups
from mengya.data.shards import Shards, ShardWriter
from mengya.train.objectives import dpo

BETA = 0.3
PAIRS = [  # prompt, chosen, rejected: lengths
    (5, 4, 9),
    (11, 1, 2),
    (3, 12, 6),
    (8, 7, 7),
]


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    rows = [[torch.randint(1, 50, (length,), generator=generator).tolist() for length in pair] for pair in PAIRS]
    return [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), row, strict=True)) for row in rows]


@pytest.fixture
def batch(pairs, tmp_path, whole):
    with ShardWriter(tmp_path / "pairs", 50, columns={"mask": "uint8"}) as writer:
        for pair in pairs:
            for side in ("chosen_ids", "rejected_ids"):
                mask = [0] * len(pair["prompt_ids"]) + [1] * len(pair[side])
                writer.append(pair["prompt_ids"] + pair[side], mask=mask)
    return whole(PackedGroups(Shards(tmp_path / "pairs"), 48, 0, 0, 2))


def named_gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_dpo_equals_trl(make_model, pairs, batch, tmp_path):
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    model, reference = make_model(1), make_model(2).requires_grad_(False)
    theirs = []
    for name, each in (("policy", model), ("reference", reference)):
        each.save(tmp_path / name)
        theirs.append(AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32))
    trainer = DPOTrainer(
        theirs[0],
        theirs[1],
        DPOConfig(str(tmp_path / "out"), beta=BETA, use_cpu=True, bf16=False, report_to=[], disable_dropout=True),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " a a", "rejected": " a"}]),  # it wants one
        processing_class=PreTrainedTokenizerFast(
            tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="a", eos_token="a"
        ),
    )
    mean = trainer.compute_loss(theirs[0].train(), trainer.data_collator(pairs))
    wanted = mean * len(pairs)
    wanted.backward()
    found = dpo(BETA, reference)(model, batch)
    found.total.backward()
    assert batch.sequences == 2 * len(pairs)
    assert torch.allclose(found.total, wanted, rtol=1e-5)
    ours, trls = named_gradients(model), named_gradients(theirs[0])
    assert ours.keys() == trls.keys() and all(float(gradient.abs().max()) > 0 for gradient in ours.values())
    for name, gradient in ours.items():  # as a whole: single small elements differ by the order of float32 sums
        assert float((gradient - trls[name]).norm() / trls[name].norm()) < 1e-5, name
    told = trainer._metrics["train"]
    for name, its in (
        ("accuracy", "rewards/accuracies"),
        ("reward_chosen", "rewards/chosen"),
        ("reward_rejected", "rewards/rejected"),
    ):
        assert float(found.metrics[name].sum) == pytest.approx(told[its][-1] * len(pairs), rel=1e-4), name
