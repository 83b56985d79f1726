"""Distillation against its formula in float64, and noise on embeddings against trl's rule."""

import pytest
import torch
import torch.nn.functional as F

from mengya.batch import IGNORE
from mengya.model import divergence
from mengya.train.neftune import add_noise
from mengya.train.objectives import distillation, language_modeling

from .test_objectives import assert_same, gradients


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rows", [512, 7])
def test_the_loss_is_the_formula(make_model, make_groups, whole, monkeypatch, reverse, rows):
    monkeypatch.setattr(divergence, "_ROWS", rows)
    student, teacher = make_model(), make_model(seed=1, hidden_size=48, num_hidden_layers=1, tie_word_embeddings=False)
    batch = whole(make_groups([20, 31, 7, 15, 9, 32]))
    found = distillation(teacher, 0.3, 2.0, reverse)(student, batch)
    learnt = batch.labels != IGNORE
    own, other = (
        m.hidden(input_ids=batch.input_ids, position_ids=batch.position_ids, starts=batch.starts)[0][learnt].double()
        @ m.output_weight.double().T
        for m in (student, teacher)
    )
    p, q = (F.log_softmax(x / 2, -1) for x in (other.detach(), own))
    a, b = (q, p) if reverse else (p, q)
    apart = (a.exp() * (a - b)).sum()
    wanted = 0.7 * F.cross_entropy(own, batch.labels[learnt], reduction="sum") + 0.3 * 4 * apart
    assert float(found.total) == pytest.approx(float(wanted), rel=1e-5)
    assert float(found.metrics["divergence"].sum) == pytest.approx(float(apart), rel=1e-5)
    assert_same(gradients(student, found.total), gradients(student, wanted))
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn(make_model, make_groups, whole):
    student, teacher = make_model(), make_model()
    batch = whole(make_groups([20, 31, 7]))
    loss = distillation(teacher, 1.0, 1.0, False)(student, batch)
    assert abs(float(loss.total)) < 1e-4
    assert all(float(g.abs().max()) < 1e-4 for g in gradients(student, loss.total).values())


def test_held_out_losses_are_those_of_the_text(make_model, make_groups, whole):
    student, teacher = make_model(), make_model(seed=1)
    batch = whole(make_groups([20, 31, 7]))
    with torch.no_grad():
        found, wanted = (o(student, batch).total for o in (distillation(teacher, 0.5, 2.0, False), language_modeling()))
    assert torch.equal(found, wanted)


def test_spare_rows_of_a_vocabulary_do_not_count(make_model, make_groups, whole):
    student, teacher = make_model(tie_word_embeddings=False), make_model(tie_word_embeddings=False)
    batch = whole(make_groups([20, 31, 7]))
    teacher.lm_head.weight = torch.nn.Parameter(torch.cat((teacher.lm_head.weight, torch.full((8, 32), 9.0))))
    assert abs(float(distillation(teacher, 1.0, 1.0, False)(student, batch).total.detach())) < 1e-4


def test_noise_has_the_bound_of_the_paper_and_only_in_training(make_model):
    model = make_model()
    plain = model.input_embedding(torch.arange(20)[None])
    add_noise(model, 5.0)
    torch.manual_seed(0)
    noise = (model.train().input_embedding(torch.arange(20)[None]) - plain).abs()
    bound = 5 / (20 * 32) ** 0.5
    assert 0.9 * bound < float(noise.max().detach()) <= bound * (1 + 1e-5)
    assert torch.equal(model.eval().input_embedding(torch.arange(20)[None]), plain)
