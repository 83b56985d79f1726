"""Muon against torch's own, a float64 reference, and the shapes that torch's refuses."""

import copy

import pytest
import torch

from mengya.errors import UserError
from mengya.train.checkpoint import Checkpoints
from mengya.train.engines.single import Engine
from mengya.train.muon import Muon, orthogonalize
from mengya.train.objectives import language_modeling
from mengya.train.optimizer import Optim, make_optimizers


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(parameters, dtype=torch.float32, lr=0.02, decay=0.1, ns_steps=5):
    optimizer = Muon([{"params": parameters}], lr, decay, 0.95, ns_steps, dtype)
    for parameter in parameters:
        optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
    return optimizer


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6), (1, 7), (3, 5, 9), (2, 4, 16, 8)])
def test_singular_values_become_about_one(shape):
    x = random(*shape)
    found = torch.linalg.svdvals(orthogonalize(x, 10).double())
    assert found.min() > 0.6 and found.max() < 1.25
    u, _, v = torch.linalg.svd(x.double(), full_matrices=False)
    cosine = torch.cosine_similarity(orthogonalize(x, 10).double().flatten(), (u @ v).flatten(), dim=0)
    assert cosine > 0.97


def test_the_iteration_is_that_of_float64():
    x = random(12, 40)
    a, b, c = 3.4445, -4.7750, 2.0315
    expected = x.double() / (x.double() @ x.double().T).norm().sqrt()
    for _ in range(5):
        gram = expected @ expected.T
        expected = a * expected + (b * gram + c * gram @ gram) @ expected
    torch.testing.assert_close(orthogonalize(x, 5).double(), expected, rtol=1e-4, atol=1e-5)


def test_a_zero_gradient_moves_nothing():
    assert not orthogonalize(torch.zeros(2, 3, 4), 5).any()


@pytest.mark.parametrize("size", [1e-5, 1e5])
def test_the_size_of_a_gradient_does_not_matter(size):
    torch.testing.assert_close(orthogonalize(random(2, 8, 12) * size, 3), orthogonalize(random(2, 8, 12), 3))


def test_two_iterations_bring_most_singular_values_near_one():
    values = torch.linalg.svdvals(orthogonalize(random(128, 256), 2))
    assert values.median() > 0.6 and values.max() < 1.25


@pytest.mark.parametrize("shapes", [[(16, 24), (16, 24), (24, 16)], [(8, 8)]])
def test_steps_go_where_torchs_go(shapes):
    """And are as long; torch begins its iterations with smaller singular values, so that they end elsewhere near 1."""
    mine = [torch.nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    starts = [p.detach().clone() for p in mine]
    optimizer = make(mine, torch.bfloat16)
    oracle = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            a.grad = random(*a.shape, seed=10 * step + i)
            b.grad = a.grad.clone()
        optimizer.step()
        oracle.step()
    for start, a, b in zip(starts, mine, theirs, strict=True):
        moved, wanted = (p.detach() - start for p in (a, b))
        assert torch.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0) > 0.98
        assert 0.9 < moved.norm() / wanted.norm() < 1.1
        torch.testing.assert_close(optimizer.state[a]["momentum_buffer"], oracle.state[b]["momentum_buffer"])


def test_stacked_matrices_are_each_their_own():
    stacked = torch.nn.Parameter(random(3, 8, 12))
    single = [torch.nn.Parameter(matrix.clone()) for matrix in stacked.detach()]
    stacked.grad = random(3, 8, 12, seed=1)
    for parameter, gradient in zip(single, stacked.grad, strict=True):
        parameter.grad = gradient.clone()
    make([stacked]).step()
    make(single).step()
    torch.testing.assert_close(stacked.detach(), torch.stack([p.detach() for p in single]))


def test_many_matrices_in_portions_are_the_same(monkeypatch):
    parameters = [torch.nn.Parameter(random(8, 12, seed=i)) for i in range(5)]
    others = copy.deepcopy(parameters)
    for p, q in zip(parameters, others, strict=True):
        p.grad, q.grad = p.detach() * 2, p.detach() * 2
    make(parameters).step()
    monkeypatch.setattr("mengya.train.muon._AT_ONCE", 200)
    make(others).step()
    for p, q in zip(parameters, others, strict=True):
        torch.testing.assert_close(p, q)


def test_matrices_of_the_blocks_are_muons_and_the_rest_adamws(make_model):
    for tied in (True, False):
        model = make_model(tie_word_embeddings=tied)
        names = {id(p): name for name, p in model.named_parameters()}
        adamw, muon = (
            {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
            for optimizer in make_optimizers(model, Optim(name="muon"))
        )
        assert muon == {name for name in names.values() if ".layers." in name and "norm" not in name}
        assert adamw == set(names.values()) - muon
        assert "model.embed_tokens.weight" in adamw and ("lm_head.weight" in adamw) == (not tied)


def test_a_checkpoint_holds_what_each_optimizer_keeps(make_model):
    engine = Engine(make_model(), language_modeling(), Optim(name="muon"))
    found = {name for name in engine.tensors() if name.startswith("optimizer.")}
    q = "model.layers.0.self_attn.q_proj.weight"
    assert f"optimizer.momentum_buffer.{q}" in found and f"optimizer.exp_avg.{q}" not in found
    assert "optimizer.exp_avg_sq.model.embed_tokens.weight" in found


@pytest.mark.parametrize(("before", "now"), [("adamw", "muon"), ("muon", "adamw")])
def test_a_checkpoint_of_another_optimizer_is_refused_with_what_differs(make_model, tmp_path, before, now):
    made, wanted = (Engine(make_model(), language_modeling(), Optim(name=name)) for name in (before, now))
    checkpoints = Checkpoints(tmp_path, 1, {}, asynchronous=False)
    checkpoints.save("step-1", 1, made.tensors(), {})
    found = checkpoints.latest()
    weights = {name: tensor.clone() for name, tensor in wanted.tensors().items()}
    message = r"another optimizer \(optimizer\.\S+: (not in|only in) the checkpoint.* delete the unfinished run"
    with pytest.raises(UserError, match=message):
        wanted.load(lambda tensors: checkpoints.load(found, tensors))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in wanted.tensors().items())
