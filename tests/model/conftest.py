"""What the tests against transformers share."""

import torch

from mengya.model.native.transformer import CausalLM


def check_greedy_decoding(model: CausalLM, peer: torch.nn.Module, prompt: torch.Tensor) -> None:
    """20 tokens after a prompt of one row, with our cache and by transformers' `generate`, are the same."""
    with torch.no_grad():
        expected = peer.generate(prompt, max_new_tokens=20, do_sample=False, pad_token_id=0)[0, prompt.shape[1] :]
        cache = model.new_cache(1, 64)
        logits, got = model.logits(model.decode(input_ids=prompt, cache=cache))[:, -1], []
        for _ in range(20):
            got.append(int(logits.argmax()))
            logits = model.logits(model.decode(input_ids=torch.tensor([[got[-1]]]), cache=cache))[:, -1]
    assert got == expected.tolist()
