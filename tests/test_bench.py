"""The speed benchmarks: who takes part, and that they end in time."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
RECIPE = """
[pretrain.model]
vocab_size = 100
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 64
max_position_embeddings = 32
"""


@pytest.fixture
def load(monkeypatch):
    """load(name) -> the module bench/<name>.py."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@pytest.mark.parametrize("name", ["train_step", "moe_step"])
def test_bfloat16_takes_part_where_the_hardware_computes_it(load, name):
    """Emulated, on a processor with AVX2 alone, it is slower than float32, which is then the strongest peer."""
    module = load(name)
    with_it, without = (
        {name: contestant for name, (_, contestant) in module.entrants(bfloat16).items() if name.startswith("peer")}
        for bfloat16 in (True, False)
    )
    kinds = [{(peer.keywords["mixed"], peer.keywords["compiled"]) for peer in p.values()} for p in (with_it, without)]
    assert kinds == [{(False, False), (True, False), (True, True)}, {(False, False), (False, True)}]
    texts = [text for text, _ in module.entrants(False).values()]
    assert not any("bf16" in text for text in texts)


@pytest.mark.parametrize(("computes", "peak"), [(True, "bfloat16"), (False, "float32")])
def test_the_peak_is_that_of_the_type_in_use(load, monkeypatch, capsys, computes, peak):
    import torch

    contest = load("contest")
    from mengya import runtime

    asked = []
    monkeypatch.setattr(runtime, "is_bfloat16_faster", lambda device: computes)
    monkeypatch.setattr(runtime, "peak_flops", lambda dtype, device: asked.append(dtype) or 1.0)
    monkeypatch.setattr(sys, "stdin", iter(["1\n"]))
    contest.measure_peak(contest.Task({}, 1, 1, 0, False, "cpu"))
    assert asked == [getattr(torch, peak)]
    assert capsys.readouterr().out.count("answer: ") == 2


class Clock:
    """A worker whose steps take so many seconds, and the time that passes with them."""

    def __init__(self, seconds):
        self.now, self.seconds, self.steps = 0.0, seconds, []

    def turn(self, steps):
        self.now += steps * self.seconds
        self.steps.append(steps)
        return {"tokens_per_second": 1.0}


@pytest.mark.parametrize(("seconds", "steps", "rounds"), [(1.0, 4, 24), (10.0, 1, 9), (60.0, 1, 1), (200.0, 1, 1)])
def test_rounds_fit_into_the_time(load, monkeypatch, seconds, steps, rounds):
    contest, clock = load("contest"), Clock(seconds)
    monkeypatch.setattr(contest.time, "monotonic", lambda: clock.now)
    assert len(contest.take_turns({"ours": clock}, 100.5)) == rounds
    assert clock.steps == [1] + [steps] * rounds and (clock.now <= 100.5 or rounds == 1)


def test_a_whole_benchmark(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    command = [
        sys.executable, str(BENCH / "train_step.py"), "--recipe", str(tmp_path / "tiny.toml"), "--rows", "2",
        "--length", "32", "--minutes", "0.1", "--contestants", "ours,peer_eager",
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout.splitlines()[-1])
    assert found["rounds"] >= 1 and found["ratio"] == found["ratios"]["peer_eager"] > 0
    assert found["memory_bytes"].keys() == {"ours", "peer_eager"} and found["peak_tflops"] > 0


def test_who_cannot_take_part_is_refused(load, monkeypatch):
    module, contest = load("train_step"), load("contest")
    monkeypatch.setattr(sys, "argv", ["train_step.py", "--contestants", "ours,peer_fast"])
    with pytest.raises(SystemExit, match="peer_fast cannot take part; there are ours, peer_eager"):
        contest.run("", module.entrants, {"ours": contest.SHAPE}, contest.summary)


def test_documents_as_the_trainer_makes_them_are_a_source(load, monkeypatch, tmp_path):
    """Padded rows of few lengths; no token of a document is lost, none is predicted from padding."""
    module = load("time_to_loss")
    monkeypatch.setattr(module, "RECIPE", module.RECIPE.replace("6400", "268").replace("0.005", "0.2"))
    (tmp_path / "text.txt").write_text("\n\n".join(f"the cat {i} sat on the mat" for i in range(200)), encoding="utf-8")
    text = module.Text(module.prepare(tmp_path / "text.txt", tmp_path / "out"))
    source = module.Documents(text)
    assert source.ahead == 1 and source.whole(0)
    lengths = set()
    for step in range(30):
        (batch,) = source(step)
        lengths.add(batch.input_ids.shape[1])
        labelled = batch.labels != -100
        assert batch.count == int(labelled.sum()) > 0
        inner = labelled[:, 1:]
        assert (batch.input_ids[:, 1:][inner] == batch.labels[:, :-1][inner]).all()
    assert lengths <= {128, 256, 384, 512}


def test_features_are_those_in_use():
    """A run that is kept to AVX2 does not say that it had more."""
    command = [sys.executable, "-c", "import contest; print(contest.features())"]
    done = subprocess.run(
        command, env=os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}, cwd=BENCH, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert set(ast.literal_eval(done.stdout)) <= {"avx2", "asimd", "sve", "DEFAULT"}


def test_grounded_reads_both_sets_and_shows_what_fits(load, tmp_path):
    """CMRC 2018 and DRCD name things differently; every third question is shown another paragraph."""
    pytest.importorskip("rjieba", reason="searching needs pip install 'mengya[documents]'")
    grounded = load("grounded")
    texts = [f"第{n}座桥叫作桥{n}号。它高{n}米。" for n in range(10, 40)]
    asked = [[f"第{n}座桥叫什么？", f"桥{n}号"] for n in range(10, 40)]
    cmrc = [
        {"context_text": text, "qas": [{"query_text": question, "answers": [answer]}]}
        for text, (question, answer) in zip(texts, asked, strict=True)
    ]
    drcd = [
        {"context": text, "qas": [{"question": question, "answers": [{"text": answer}]}]}
        for text, (question, answer) in zip(texts, asked, strict=True)
    ]
    rows = []
    for name, content in (("cmrc.jsonl", cmrc), ("drcd.jsonl", drcd)):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in content), encoding="utf-8")
        rows.append(list(grounded.reading(path, 30, 12, lambda question, passages: len(passages) <= 1)))
    assert rows[0] == rows[1] and len(rows[0]) == 30
    held = [row for row in rows[0] if row["golds"]]
    assert len(held) == 20 and all(row["golds"][0] in row["passages"][0] for row in held)
    assert all(row["cites"] == (set(row["golds"]) and {1}) or row["cites"] == set() for row in rows[0])
    responses = [f"{row['golds'][0]}[1]。" if row["golds"] else "资料中没有提到。" for row in rows[0]]
    perfect = grounded.measured(rows[0], responses)
    assert perfect == {
        "answered": 1,
        "cited": 1,
        "exact": 1,
        "f1": 1,
        "quoted": 1,
        "refused": 1,
        "unquoted": 0,
        "questions": [20, 10],
    }
    silent = grounded.measured(rows[0], ["我不知道。"] * 30)
    assert (silent["answered"], silent["cited"], silent["exact"], silent["f1"], silent["refused"]) == (0, 0, 0, 0, 1)


def test_grounded_overlap_and_passages(load):
    grounded = load("grounded")
    assert grounded.overlap("1987年", "1987年春") == pytest.approx(0.8) and grounded.overlap("北京", "上海") == 0
    assert grounded.overlap("Apollo 11", "apollo") == pytest.approx(2 / 3)
    text = "一二三。四五。六七八九十一二三四五！"
    assert grounded.cut(text, 7) == ["一二三。四五。", "六七八九十一二", "三四五！"]
    assert grounded.nearest("他在哪里", ["四五。", "他在哪。", "哪里"], 2) == ["他在哪。", "哪里"]
