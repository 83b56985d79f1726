"""Objectives: against transformers, against the papers' formulas in float64, and packed against unpacked."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from mengya.batch import IGNORE
from mengya.data.mixture import TextAmongPairs, with_replay
from mengya.data.packing import make_batch
from mengya.train.objectives import by_sequence, dpo, language_modeling, token_log_probs


def gradients(model, total):
    model.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, wanted, tolerance=2e-5):
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        scale = float(wanted[name].abs().max())
        assert scale > 0, name
        assert float((gradient - wanted[name]).abs().max()) <= tolerance * scale, name


def sequences(batch):
    """Each sequence of a batch by itself: input ids and labels (1, T)."""
    for number in range(batch.sequences):
        chosen = batch.sequence_ids == number
        yield batch.input_ids[chosen][None], batch.labels[chosen][None]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_language_modeling_equals_transformers(make_model, make_groups, whole, tmp_path, tied, qk_norm):
    model = make_model(tie_word_embeddings=tied, qk_norm=qk_norm, attention_bias=not qk_norm)
    model.save(tmp_path / "model")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    batch = whole(make_groups([20, 31, 7, 15, 9, 32]))
    found = language_modeling()(model, batch).total
    wanted = torch.zeros(())
    for ids, labels in sequences(batch):
        shifted = torch.cat([torch.full((1, 1), IGNORE), labels[:, :-1]], 1)  # transformers shifts by itself
        count = (labels != IGNORE).sum()
        if count:
            wanted = wanted + peer(input_ids=ids, labels=shifted).loss * count
    assert batch.count == (batch.labels != IGNORE).sum() > 40
    assert torch.allclose(found, wanted, rtol=1e-5)
    assert_same(gradients(model, found / batch.count), gradients(peer, wanted / batch.count))


@pytest.mark.parametrize("kind", ["text", "groups"])
def test_packed_equals_each_document_alone(make_model, make_text, make_groups, whole, kind):
    model = make_model()
    lengths = [5, 1, 20, 12, 9, 3, 14, 8]
    packer = make_text(lengths, seq_len=100) if kind == "text" else make_groups(lengths, seq_len=40)
    batch = whole(packer)
    assert batch.sequences == len(lengths)
    objective = language_modeling()
    packed = objective(model, batch).total
    alone = torch.zeros(())
    for ids, labels in sequences(batch):
        alone = alone + F.cross_entropy(model(ids)[0], labels[0], ignore_index=IGNORE, reduction="sum")
    assert torch.allclose(packed, alone, rtol=1e-5)
    assert_same(gradients(model, packed), gradients(model, alone))


def test_padding_contributes_nothing(make_model, make_groups):
    model = make_model()
    packer = make_groups([20, 20, 20])
    rows = [packer.row(i) for i in range(len(packer))]
    batch = make_batch(rows, 0)
    padding = batch.sequence_ids < 0
    assert padding.any()
    objective = language_modeling()
    before = gradients(model, objective(model, batch).total)
    batch.input_ids[padding] = 7
    assert_same(gradients(model, objective(model, batch).total), before, 1e-7)


def pair_batch(make_groups, whole, seed=0):
    return whole(make_groups([9, 12, 20, 7, 5, 5, 16, 15, 8, 20], group=2, seed=seed))


def reference_log_probs(model, batch):
    """Per sequence, in float64, each alone."""
    found = []
    for ids, labels in sequences(batch):
        log_p = model.double()(ids).double().log_softmax(-1)[0]
        kept = labels[0] != IGNORE
        found.append(log_p[kept].gather(1, labels[0][kept][:, None]).sum())
    return torch.stack(found)


def double_logits(model):
    """CausalLM.forward ends in float32; this one does not."""

    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model.double()

        def forward(self, ids):
            return F.linear(self.inner.hidden(input_ids=ids)[0], self.inner.output_weight)

        def double(self):
            return self

    return Wide()


def test_sequence_log_probs(make_model, make_groups, whole):
    batch = pair_batch(make_groups, whole)
    assert batch.sequences == 10 and batch.count == 5 and (batch.sequence_ids < 0).any()
    found = by_sequence(token_log_probs(make_model(), batch)[0], batch)
    wanted = reference_log_probs(double_logits(make_model()), batch)
    assert torch.allclose(found.double(), wanted, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_is_the_formula_of_the_paper(make_model, make_groups, whole, beta):
    batch = pair_batch(make_groups, whole)
    model, reference = make_model(1), make_model(2).requires_grad_(False)
    loss = dpo(beta, reference)(model, batch)
    found = gradients(model, loss.total)

    wide = double_logits(make_model(1))
    policy, baseline = reference_log_probs(wide, batch), reference_log_probs(double_logits(make_model(2)), batch)
    ratios = (policy - baseline.detach()).view(5, 2)
    margins = beta * (ratios[:, 0] - ratios[:, 1])
    wanted = -torch.log(1 / (1 + torch.exp(-margins))).sum()
    assert torch.allclose(loss.total.double(), wanted, rtol=1e-5)
    assert_same(found, {name: g.float() for name, g in gradients(wide.inner, wanted).items()}, 1e-4)
    expected = {
        "accuracy": (margins > 0).double().sum(),
        "margin": margins.sum(),
        "reward_chosen": beta * ratios[:, 0].sum(),
        "reward_rejected": beta * ratios[:, 1].sum(),
    }
    assert loss.metrics.keys() == expected.keys()
    for name, (value, divisor) in loss.metrics.items():
        assert divisor == batch.count and torch.allclose(value.double(), expected[name], rtol=1e-4, atol=1e-5), name
        assert not value.requires_grad
    assert all(p.grad is None for p in reference.parameters())


@pytest.mark.parametrize("kind", ["plain", "compiled", "recomputed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dpo_of_a_model_with_itself_is_log_two(make_model, make_groups, whole, kind, dtype):
    batch = pair_batch(make_groups, whole)
    model, reference = make_model(3), make_model(3).requires_grad_(False)
    for each in (model, reference):
        each.compute_dtype = dtype
        if kind == "compiled":
            each.compile_blocks()
        elif kind == "recomputed":
            each.recompute_blocks()
    reference.detach_blocks()
    objective = dpo(0.1, reference)
    loss = objective(model, batch)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        measured = objective(model, batch)
    for found in (loss, measured):
        assert torch.allclose(found.total, torch.tensor(2.0).log() * 5)
        assert float(found.metrics["margin"].sum) == float(found.metrics["accuracy"].sum) == 0
    assert gradients(model, loss.total)


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_reference_of_dpo_keeps_no_graph(make_model, make_groups, whole, recomputed):
    batch = pair_batch(make_groups, whole)
    model, reference = make_model(1), make_model(2).requires_grad_(False)
    if recomputed:
        model.recompute_blocks()
        reference.recompute_blocks()
    reference.detach_blocks()
    saved = []

    def remember(x):
        copy = x.detach().clone()
        saved.append(weakref.ref(copy))
        return copy

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda x: x):
        baseline = by_sequence(token_log_probs(reference, batch)[0], batch)
        assert saved and not baseline.requires_grad
        assert not any(tensor() is not None for tensor in saved)
        log_p = by_sequence(token_log_probs(model, batch)[0], batch)
        assert log_p.requires_grad and any(tensor() is not None for tensor in saved)


def test_dpo_packed_equals_pair_by_pair(make_model, make_groups, whole):
    packer = make_groups([9, 12, 10, 7, 5, 5, 16, 15], seq_len=64, group=2)
    packed = whole(packer)
    alone = whole(make_groups([9, 12, 10, 7, 5, 5, 16, 15], seq_len=31, group=2))
    assert len(packed.input_ids) < len(alone.input_ids) and packed.count == alone.count == 4
    model, reference = make_model(1), make_model(2).requires_grad_(False)
    losses = [dpo(0.1, reference)(model, batch).total for batch in (packed, alone)]
    assert torch.allclose(*losses, rtol=1e-5)
    assert_same(*(gradients(model, dpo(0.1, reference)(model, batch).total) for batch in (packed, alone)))


def test_a_row_of_text_among_pairs_weighs_as_one_pair(make_model, make_groups, make_text, whole):
    lengths = [9, 12, 10, 7]
    pairs, text = whole(make_groups(lengths, seq_len=32, group=2)), whole(make_text([40, 30], seq_len=32))
    rows = TextAmongPairs(make_text([40, 30], seq_len=32), 2)
    mixed = with_replay(make_groups(lengths, seq_len=32, group=2), rows, 0.6, 0)
    batch = make_batch([mixed.row(i) for i in range(len(mixed))], 2)
    texts = int((batch.sequence_ids < 0).all(1).sum())
    assert batch.count == pairs.count + texts and texts == len(text.input_ids) == 3
    model, reference = make_model(1), make_model(2).requires_grad_(False)
    found, alone = dpo(0.1, reference)(model, batch), dpo(0.1, reference)(model, pairs)
    log_p, _ = token_log_probs(model, text)
    means = log_p.sum(1) / (text.labels != IGNORE).sum(1)
    assert torch.allclose(found.total, alone.total - means.sum(), rtol=1e-5)
    for name, metric in alone.metrics.items():  # which are of the pairs
        assert torch.allclose(found.metrics[name].sum, metric.sum, rtol=1e-4)
        assert found.metrics[name].divisor == metric.divisor == pairs.count
