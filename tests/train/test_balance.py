"""The losses of routers against their definitions, in plain float64; and what the selection bias does."""

import dataclasses
import re

import pytest
import torch

from mengya.batch import IGNORE, Batch
from mengya.errors import UserError
from mengya.model.language_model import Routing
from mengya.train.balance import Balance, after_step, check, router_losses, weigh
from mengya.train.objectives import dpo, language_modeling

EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=1)
NONE = Balance(sequence_loss_coef=0, z_loss_coef=0)


def make_batch(padding: list[int], time: int = 12, seed: int = 0) -> Batch:
    """As many rows as `padding` has numbers, each the number of padding tokens at its end; some labels are masked."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(padding)
    real = torch.arange(time) < time - torch.tensor(padding)[:, None]
    labels = torch.randint(1, 50, (rows, time), generator=generator)
    labels[~real | (torch.rand(rows, time, generator=generator) < 0.3)] = IGNORE
    return Batch(
        input_ids=torch.randint(1, 50, (rows, time), generator=generator),
        labels=labels,
        position_ids=torch.arange(time).expand(rows, -1),
        starts=torch.zeros(rows, time, dtype=torch.int32),
        sequence_ids=torch.where(real, torch.arange(rows)[:, None], -1),
        sequences=rows,
        count=int((labels != IGNORE).sum()),
    )


def make_routings(layers: int, batch: Batch, experts: int = 4, top_k: int = 2) -> list[Routing]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(layers, *batch.input_ids.shape, experts, generator=generator, dtype=torch.float64) * 2
    return [Routing(x.requires_grad_(), x.topk(top_k).indices) for x in logits]


def balance_by_definition(logits: list, experts: list, top_k: int) -> torch.Tensor:
    """Sum over the experts of f_i P_i, of a list of tokens."""
    kinds, tokens = len(logits[0]), len(logits)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(kinds):
        f = kinds / (top_k * tokens) * sum(int(i in chosen) for chosen in experts)
        total = total + f * sum(x.exp()[i] / x.exp().sum() for x in logits) / tokens
    return total


def test_losses_are_those_of_the_papers():
    batch = make_batch([0, 5, 0])
    routings = make_routings(2, batch)
    found = router_losses(routings, batch)
    sequence = z = whole = torch.zeros((), dtype=torch.float64)
    load = torch.zeros(2, 4)
    for layer, (logits, experts) in enumerate(routings):
        everything: list = []
        for row in range(3):
            real = batch.sequence_ids[row] >= 0
            x, chosen = list(logits[row][real]), experts[row][real].tolist()
            everything += zip(x, chosen, strict=True)
            weight = int((batch.labels[row] != IGNORE).sum())
            sequence = sequence + weight * balance_by_definition(x, chosen, 2) / 2
            z = z + weight * sum(y.exp().sum().log() ** 2 for y in x) / len(x) / 2
            for kind in (kind for kinds in chosen for kind in kinds):
                load[layer, kind] += 1
        whole = whole + batch.count * balance_by_definition(*map(list, zip(*everything, strict=True)), 2) / 2
    for name, expected in (("sequence", sequence), ("z", z), ("batch", whole)):
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-6, atol=0)
    assert torch.equal(found.load.float(), load)
    leaves = [routing.logits for routing in routings]
    ours = torch.autograd.grad(found.sequence + 3 * found.z + 2 * found.batch, leaves)
    theirs = torch.autograd.grad(sequence + 3 * z + 2 * whole, leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_balanced_routing_costs_one():
    batch = make_batch([0, 0], time=8)
    experts = (torch.arange(8)[:, None] * 2 + torch.arange(2)) % 4
    routing = Routing(torch.zeros(2, 8, 4), experts.expand(2, -1, -1))
    losses = router_losses([routing], batch)
    assert float(losses.sequence) / batch.count == pytest.approx(1)
    assert float(losses.batch) / batch.count == pytest.approx(1)
    total, metrics = weigh(losses, 3, Balance(sequence_loss_coef=0.1, batch_loss_coef=0.2, z_loss_coef=0))
    assert float(total) / batch.count == pytest.approx(3 * 0.3)
    assert metrics["expert_load"].sum.tolist() == [[8.0] * 4]
    assert metrics["balance_loss"].sum / batch.count == pytest.approx(1)


def test_padding_and_the_split_into_micro_batches_change_nothing(make_model):
    model = make_model(**EXPERTS)
    objective = language_modeling(Balance(sequence_loss_coef=0.5, z_loss_coef=0.1))
    batch = make_batch([0, 7, 12, 3])

    def rows(part: slice) -> Batch:
        names = ("input_ids", "labels", "position_ids", "starts", "sequence_ids")
        tensors = {name: getattr(batch, name)[part] for name in names}
        count = int((tensors["labels"] != IGNORE).sum())
        return dataclasses.replace(batch, **tensors, count=count)

    whole = objective(model, batch)
    split = [objective(model, rows(part)) for part in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(loss.total for loss in split), whole.total)
    for name in ("balance_loss", "router_z_loss", "expert_load"):
        torch.testing.assert_close(sum(loss.metrics[name].sum for loss in split), whole.metrics[name].sum)
    other = batch.input_ids.clone()
    other[batch.sequence_ids < 0] = 3
    again = objective(model, dataclasses.replace(batch, input_ids=other))
    torch.testing.assert_close(again.total, whole.total, rtol=0, atol=0)
    assert int(whole.metrics["expert_load"].sum.sum()) == 2 * int((batch.sequence_ids >= 0).sum())


def test_held_out_loss_is_without_them(make_model):
    model, batch = make_model(**EXPERTS), make_batch([0, 2])
    objective = language_modeling(Balance(sequence_loss_coef=5.0))
    with torch.no_grad():
        heldout = objective(model, batch)
        expected = language_modeling(NONE)(model, batch)
    assert heldout.metrics == {} and torch.equal(heldout.total, expected.total)
    trained = language_modeling(NONE)(model, batch).total
    torch.testing.assert_close(heldout.total, trained.detach())
    assert objective(model, batch).total > trained + 4 * batch.count


def test_preferences_are_balanced_too(make_model):
    model, reference = make_model(**EXPERTS), make_model(seed=1, **EXPERTS).requires_grad_(False)
    batch = dataclasses.replace(make_batch([0, 2, 1, 0]), count=2)
    loss = dpo(0.1, reference, Balance(sequence_loss_coef=1.0, z_loss_coef=0))(model, batch)
    plain = dpo(0.1, reference, NONE)(model, batch)
    torch.testing.assert_close(loss.total, plain.total + loss.metrics["balance_loss"].sum)
    assert 0.5 < float(loss.metrics["balance_loss"].sum) / batch.count < 2 and "accuracy" in loss.metrics


def test_the_auxiliary_loss_alone_balances_the_load(make_model):
    model, batch = make_model(**EXPERTS, initializer_range=0.5), make_batch([0] * 8, time=24)
    gates = [p for n, p in model.named_parameters() if n.endswith("mlp.gate.weight")]
    objective = language_modeling(Balance(sequence_loss_coef=1.0))
    optimizer, spreads = torch.optim.Adam(gates, lr=0.01), []
    for _ in range(30):
        loss = objective(model, batch)
        spreads.append(float(loss.metrics["expert_load"].sum.std(-1).mean()))
        optimizer.zero_grad()
        (loss.total / batch.count).backward()
        optimizer.step()
    assert min(spreads[-5:]) < 0.6 * spreads[0]


def test_the_selection_bias_balances_the_load_without_a_loss(make_model):
    model, batch = make_model(**EXPERTS, initializer_range=0.5), make_batch([0] * 8, time=24)
    objective, update = language_modeling(NONE), after_step(model, Balance(bias_update_rate=0.005))
    assert update is not None
    spreads = []
    for _ in range(120):
        load = objective(model, batch).metrics["expert_load"].sum
        spreads.append(float(load.std(-1).mean()))
        update({"expert_load": load.tolist()})
    assert sum(spreads[-10:]) / 10 < 0.4 * spreads[0]


def test_the_bias_moves_one_step_towards_the_mean(make_model):
    model = make_model(**EXPERTS)
    update = after_step(model, Balance(bias_update_rate=0.25))
    assert update is not None
    update({"expert_load": [[4.0, 0.0, 2.0, 2.0]]})
    bias = model.model.layers[1].mlp.gate.moe_statics.e_score_correction_bias
    assert bias.tolist() == [[-0.25, 0.25, 0.0, 0.0]] and not bias.requires_grad
    assert after_step(model, Balance()) is None


def test_what_does_not_suit_the_model_is_refused(make_model):
    unbiased = make_model(**EXPERTS, norm_topk_prob=False)
    assert unbiased.has_experts and unbiased.selection_biases() == []
    with pytest.raises(ValueError, match=re.escape("balance.bias_update_rate=0.001 needs norm_topk_prob=true")):
        check(Balance(bias_update_rate=0.001), experts=True, biased=False)
    with pytest.raises(UserError, match="no experts"):
        after_step(make_model(), Balance(z_loss_coef=0.5))
    check(Balance(), experts=True, biased=False)
    with pytest.raises(UserError, match="norm_topk_prob=true"):
        after_step(unbiased, Balance(bias_update_rate=0.001))
    assert after_step(make_model(), Balance()) is None
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Balance(z_loss_coef=-1)
