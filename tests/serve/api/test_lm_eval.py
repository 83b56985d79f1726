"""lm-eval through `/v1/completions` finds what it finds in the process."""

import json

import pytest

from mengya.infer.backends.local import Local
from mengya.model.load import load_model
from mengya.serve.api.settings import Settings
from mengya.text.tokenizer import Tokenizer

from .scripted import Live

TASK = """
task: plants
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture
def task(tmp_path):
    rows = [
        {"question": question, "choices": ["春天", "竹子，", "sprout 🌱"], "answer": number % 3}
        for number, question in enumerate(
            ["小苗在", "熊猫吃", "The seed becomes a", "１＋１＝？", "“你好”，", "他说："]
        )
    ]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "plants.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"), encoding="utf-8")
    return tmp_path


def test_scores_are_those_of_the_process(task, everything, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(task / "cache"))
    lm_eval = pytest.importorskip("lm_eval", reason='lm-eval is not installed: pip install "lm-eval[api]"')
    tasks = pytest.importorskip("lm_eval.tasks").TaskManager(include_path=str(task))

    def scores(kind: str, **arguments: object) -> tuple[list[float], dict]:
        found = lm_eval.simple_evaluate(kind, arguments, tasks=["plants"], task_manager=tasks, device="cpu")
        responses = [r[0][0] for sample in found["samples"]["plants"] for r in sample["resps"]]
        return [float(r) for r in responses], found["results"]["plants"]

    tokenizer = Tokenizer.load(everything)
    live = Live(Settings(models={"plants": Local("plants", load_model(everything), tokenizer, None)}))
    try:
        url = f"{live.url}/v1/completions"
        served, figures = scores(
            "local-completions", base_url=url, model="plants", tokenizer=str(everything),
            tokenizer_backend="huggingface",
        )  # fmt: skip
    finally:
        live.stop()
        live.backend.close()
    here, expected = scores("hf", pretrained=str(everything), dtype="float32")
    assert served == pytest.approx(here, abs=1e-4) and len(served) == 18
    assert {name: figures[name] for name in ("acc,none", "acc_norm,none")} == {
        name: expected[name] for name in ("acc,none", "acc_norm,none")
    }
