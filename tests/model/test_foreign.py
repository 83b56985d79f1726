"""Architectures that only the transformers library knows: the same numbers as there, and packed rows kept apart."""

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from mengya.errors import UserError
from mengya.model.foreign import Foreign
from mengya.model.load import load_model

from .conftest import check_greedy_decoding, in_pieces

WIDE = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
LLAMA = WIDE | dict(num_key_value_heads=2, max_position_embeddings=64)
SHAPES = {
    "gpt2": dict(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": WIDE | dict(max_position_embeddings=64),
    "opt": dict(vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4)
    | dict(max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=1),
    "bloom": dict(vocab_size=97, hidden_size=32, n_layer=2, n_head=4),
    "phi": WIDE | dict(max_position_embeddings=64),  # its output projection has a bias
    "cohere": LLAMA | dict(logit_scale=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "granite": LLAMA | dict(logits_scaling=8.0, embedding_multiplier=12.0),
    "gemma3_text": LLAMA | dict(head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
    "qwen2": LLAMA | dict(use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen2_moe": LLAMA
    | dict(moe_intermediate_size=16, shared_expert_intermediate_size=32, num_experts=4, num_experts_per_tok=2),
    "deepseek_v3": LLAMA
    | dict(moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1)
    | dict(first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
    | dict(num_key_value_heads=4),
    "mamba": dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4),
}
BY_DOCUMENT = {"mamba", "bloom", "opt"}
"""Those whose mask does not go by positions: documents of one row are computed apart."""
LENGTHS = [9, 4, 14, 5]


@pytest.fixture(params=SHAPES)
def pair(request, tmp_path):
    """The name, ours and the library's model of the same random weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **SHAPES[request.param])
    theirs = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    theirs.save_pretrained(tmp_path / "theirs")
    return request.param, load_model(tmp_path / "theirs"), theirs


def ids_of(shape, seed=1):
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_library_that_computes(pair):
    _, ours, theirs = pair
    assert isinstance(ours, Foreign) and ours.implementation == "transformers"
    assert type(theirs).__name__ in ours.title
    assert ours.vocab_size == 97 and ours.context >= 64
    assert len(ours.blocks()) == 2


def test_logits_and_loss_are_those_of_the_library(pair):
    _, ours, theirs = pair
    ids = ids_of((2, 20))
    with torch.no_grad():
        wanted = theirs(input_ids=ids, labels=ids)
        torch.testing.assert_close(ours(ids), wanted.logits, atol=2e-5, rtol=1e-4)
        total = ours.loss(ours.hidden(input_ids=ids[:, :-1])[0], ids[:, 1:])
    if not ours.has_experts:  # there the library adds its router's loss
        assert float(total) / 38 == pytest.approx(float(wanted.loss), rel=1e-5)


def packed(lengths, seed=2):
    ids = ids_of((1, sum(lengths)), seed)
    places = torch.cat([torch.arange(n) for n in lengths])[None]
    starts = (torch.arange(sum(lengths)) - places).int()
    return ids, places, starts


def test_documents_of_a_row_do_not_see_each_other(pair):
    name, ours, theirs = pair
    ids, places, starts = packed(LENGTHS)
    with torch.no_grad():
        found = ours.logits(ours.hidden(input_ids=ids, position_ids=places, starts=starts)[0])
        alone = [theirs(input_ids=part).logits for part in ids.split(LENGTHS, dim=1)]
    torch.testing.assert_close(found, torch.cat(alone, 1), atol=2e-5, rtol=1e-4)
    assert ours._apart == (name not in BY_DOCUMENT)


def test_the_gradient_of_a_document_stays_in_it(pair):
    """Also of the path that computes them apart: of two rows at once, with unequal documents."""
    _, ours, _ = pair
    rows = [packed([9, 4, 14, 5], 3), packed([16, 16], 4)]
    ids, places, starts = (torch.cat(parts) for parts in zip(*rows, strict=True))
    embedding = ours.inner.get_input_embeddings()
    seen = []
    hook = embedding.register_forward_hook(lambda module, inputs, out: seen.append(out) or out.retain_grad())
    hidden = ours.hidden(input_ids=ids, position_ids=places, starts=starts)[0]
    hidden[0, 10].sum().backward()
    hook.remove()
    touched = seen[-1].grad.abs().sum(-1)
    if touched.shape == ids.shape:
        assert touched[0, 9:11].all() and touched.count_nonzero() == 2
    else:
        assert touched.count_nonzero() == 2


def test_what_is_saved_is_the_same_model(pair, tmp_path):
    _, ours, theirs = pair
    ours.save(tmp_path / "saved", eos_token_id=[2], pad_token_id=0)
    again, told = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", output_loading_info=True, dtype=torch.float32
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    ids = ids_of((1, 12))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, theirs(ids).logits)
        torch.testing.assert_close(load_model(tmp_path / "saved")(ids), ours(ids))
    assert again.generation_config.eos_token_id == [2] and again.config.eos_token_id == [2]


def test_greedy_decoding_equals_generate(pair):
    name, ours, theirs = pair
    if name == "mamba":
        pytest.skip("its state is no cache of keys and values")
    check_greedy_decoding(ours, theirs, ids_of((1, 7)))


def test_sequences_that_join_and_leave_are_computed_as_alone(pair):
    """In any order; a prompt is read in pieces."""
    name, ours, theirs = pair
    if name == "mamba":
        pytest.skip("its state is no cache of keys and values")
    rows = [row[:length].tolist() for row, length in zip(ids_of((4, 14)), (14, 9, 12, 6), strict=True)]
    plan = [
        (9, 5, 0, 0),
        (1, 1, 4, 0),
        (1, 1, 3, 0),
        (1, 1, 1, 2),
        (1, 1, 1, 1),
        (1, 0, 1, 1),
        (0, 0, 1, 1),
        (0, 0, 1, 1),
    ]
    steps = Leaving(ours.steps(100), {1: 9, 0: 14})
    with torch.no_grad():
        for row, logits in zip(rows, in_pieces(steps, rows, plan), strict=True):
            torch.testing.assert_close(logits, theirs(torch.tensor([row])).logits[0], atol=2e-5, rtol=1e-4)


class Leaving:
    """Steps in which a sequence is forgotten once it has so many tokens."""

    def __init__(self, steps, lengths):
        self.steps, self.lengths, self.block = steps, lengths, steps.block

    def run(self, spans):
        logits = self.steps.run(spans)
        for span in spans:
            if span.start + len(span.tokens) == self.lengths.get(span.sequence):
                self.steps.forget(span.sequence)
        return logits


def test_a_model_of_ours_is_the_librarys_on_demand(tmp_path):
    config = AutoConfig.for_model("llama", **LLAMA)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    ours, theirs = load_model(tmp_path), load_model(tmp_path, implementation="transformers")
    assert (ours.implementation, theirs.implementation) == ("native", "transformers")
    ids, places, starts = packed(LENGTHS)
    with torch.no_grad():
        a, b = (m.hidden(input_ids=ids, position_ids=places, starts=starts)[0] for m in (ours, theirs))
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_logits_that_are_no_product_are_refused(tmp_path):
    config = AutoConfig.for_model("gemma2", **LLAMA, head_dim=8, query_pre_attn_scalar=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="final_logit_softcapping"):
        load_model(tmp_path)


def test_an_architecture_that_nobody_has(tmp_path):
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    known = path.read_text()
    path.write_text(known.replace('"llama"', '"sprout"'))
    with pytest.raises(UserError, match="neither here nor in the transformers library"):
        load_model(tmp_path)
    path.write_text(known.replace('"llama"', '"sprout", "auto_map": {"AutoModelForCausalLM": "evil.Model"}'))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    with pytest.raises(UserError, match="code that comes with the model"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused_with_the_command_that_converts_them(tmp_path):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **SHAPES["gpt2"]))
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickles .* convert them once: python -c") as raised:
        load_model(tmp_path)
    exec(str(raised.value).split('python -c "')[1].removesuffix('"'))  # what the message advises
    load_model(tmp_path)


def test_weights_that_are_missing_are_an_error(tmp_path):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **SHAPES["gpt2"]))
    state = model.state_dict()
    del state["transformer.h.1.ln_1.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match=r"do not fit the model: .*h\.1\.ln_1\.weight: missing"):
        load_model(tmp_path)


def test_without_the_library_one_line_says_what_to_install(tmp_path, monkeypatch):
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **SHAPES["gpt2"])).save_pretrained(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs the transformers library; pip install 'mengya\[models\]'"):
        load_model(tmp_path)
    assert transformers is not None
