"""Models whose code comes with them: run only for who trusts it; then as any other."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from mengya.errors import UserError
from mengya.model.adapters import Lora
from mengya.model.foreign import WithItsCode
from mengya.model.load import describe, load_merged, load_model, outline

from .. import remote_code
from .conftest import in_pieces
from .test_foreign import LENGTHS, packed


@pytest.fixture(params=remote_code.SHAPES)
def directory(request, tmp_path):
    return remote_code.write(request.param, tmp_path / "given", 97)


def test_it_is_run_only_for_who_trusts_it(directory, tmp_path, capsys):
    directory = shutil.copytree(directory, tmp_path / "unseen")
    code = next(directory.glob("modeling_*.py"))
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n" + code.read_text(), encoding="utf-8")
    content = describe(directory)
    for look in (lambda: load_model(directory), lambda: outline(content, directory)):
        with pytest.raises(UserError, match=r"code that comes with the model .* set trust_remote_code = true"):
            look()
    assert not (tmp_path / "ran").exists()
    model = load_model(directory, trust_remote_code=True)
    assert (tmp_path / "ran").exists() and isinstance(model, WithItsCode)
    assert "running the code that comes with" in capsys.readouterr().out


def test_it_computes_as_the_library_does_with_it(directory):
    ours = load_model(directory, trust_remote_code=True)
    theirs = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).eval()
    ids, places, starts = packed(LENGTHS)
    with torch.no_grad():
        found = ours.logits(ours.hidden(input_ids=ids, position_ids=places, starts=starts)[0])
        alone = [theirs(input_ids=part).logits for part in ids.split(LENGTHS, dim=1)]
    torch.testing.assert_close(found, torch.cat(alone, 1), atol=2e-5, rtol=1e-4)
    assert ours.context == 256 and len(ours.blocks()) == 2
    with torch.no_grad():
        expected = theirs(input_ids=ids[:1, :17]).logits[0]
    found = in_pieces(ours.steps(64), ids[:1, :17].tolist(), [(9,), *[(1,)] * 8])
    torch.testing.assert_close(found[0], expected, atol=2e-5, rtol=1e-4)


def test_it_is_saved_with_its_code(directory, tmp_path):
    model = load_model(directory, trust_remote_code=True)
    model.save(tmp_path / "saved", eos_token_id=[2], pad_token_id=0)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids))


def test_a_model_of_it_without_weights(directory):
    content = describe(directory)
    model = outline(content, directory, trust_remote_code=True)
    assert model.device.type == "meta" and model.vocab_size == 97
    assert model.description()["_name_or_path"] == str(directory)
    again = outline(model.description() | {"vocab_size": 120}, trust_remote_code=True)
    assert again.vocab_size == 120


@pytest.mark.parametrize("dora", [False, True])
def test_its_layers_get_an_adapter(directory, tmp_path, dora):
    model = load_model(directory, lora=Lora(r=4, dora=dora), trust_remote_code=True)
    names = {name.rpartition(".lora_A")[0].rpartition(".")[2] for name in model.weights() if ".lora_A" in name}
    assert names == (
        {"W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"}
        if "baichuan" in model.title.lower()
        else {"c_attn", "c_proj", "w1", "w2"}
    )
    with torch.no_grad():
        for name, weight in model.weights().items():
            if ".lora_B" in name:
                weight.normal_(0, 0.1)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted = model(ids)
    model.save(tmp_path / "adapter")
    with pytest.raises(UserError, match="code that comes with the model"):
        load_model(tmp_path / "adapter")
    merged = load_merged([tmp_path / "adapter"], trust_remote_code=True)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids), wanted, atol=1e-5, rtol=1e-5)


def test_code_of_an_architecture_that_the_library_has_is_neither_run_nor_saved(tmp_path):
    from transformers import AutoConfig

    from .test_foreign import SHAPES

    AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **SHAPES["gpt2"])).save_pretrained(tmp_path / "given")
    path = tmp_path / "given" / "config.json"
    auto_map = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))
    (tmp_path / "given" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for trusted in (False, True):
        describe(tmp_path / "given")
        load_model(tmp_path / "given", trust_remote_code=trusted).save(tmp_path / f"saved-{trusted}")
        assert "auto_map" not in json.loads((tmp_path / f"saved-{trusted}" / "config.json").read_text())
    assert not (tmp_path / "ran").exists()
