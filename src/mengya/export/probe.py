"""What another engine computes, as JSON: run by the Python that has the engine, which need not have mengya.

    python probe.py llama_cpp|vllm < request.json > answer.json

Request: `path`; `context`; `threads`; `sequences`, lists of token ids; `texts`, each with whether control tokens in it
count; `talks`, conversations for which an answer is due; `prompts`, lists of ids to answer greedily with `tokens`
tokens. Answer: `version`; `log_probs` of each sequence's tokens after the first; `ids` of the texts; `rendered`, ids of
the conversations by the chat template in the files; `answers` of the prompts.
"""

import contextlib
import json
import os
import sys


def llama_cpp(request):
    import llama_cpp
    import numpy as np

    model = llama_cpp.Llama(
        request["path"],
        n_ctx=request["context"],
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        logits_all=True,
        verbose=False,
        type_k=0,  # keys and values in float32
        type_v=0,
    )

    def scores(ids):
        model.reset()
        model.eval(ids)
        return model.scores[: len(ids)].astype(np.float64)

    log_probs = []
    for ids in request["sequences"]:
        logits = scores(ids)
        logits -= logits.max(-1, keepdims=True)
        rows = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        log_probs.append([float(rows[at, token]) for at, token in enumerate(ids[1:])])
    answers = []
    for prompt in request["prompts"]:
        answer = []
        for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            answer.append(int(token))
            if len(answer) == request["tokens"] or llama_cpp.llama_vocab_is_eog(_vocab(llama_cpp, model), token):
                break
        answers.append(answer)
    ids = [model.tokenize(text.encode(), add_bos=True, special=special) for text, special in request["texts"]]
    rendered = _rendered(llama_cpp, model, request["talks"])
    found = {"log_probs": log_probs, "ids": ids, "rendered": rendered, "answers": answers}
    return {"version": llama_cpp.__version__} | found


def _rendered(llama_cpp, model, talks):
    vocabulary = _vocab(llama_cpp, model)
    bos, eos = (
        llama_cpp.llama_vocab_get_text(vocabulary, token).decode() for token in (model.token_bos(), model.token_eos())
    )
    rendered = []
    for talk in talks:
        template = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
            template=model.metadata["tokenizer.chat_template"], bos_token=bos, eos_token=eos
        )
        prompt = template(messages=talk).prompt.encode()
        rendered.append(model.tokenize(prompt, add_bos=True, special=True))
    return rendered


def _vocab(llama_cpp, model):
    return llama_cpp.llama_model_get_vocab(model.model)


def vllm(request):
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    import vllm

    model = vllm.LLM(
        request["path"],
        dtype="float32",
        max_model_len=request["context"],
        enforce_eager=True,
        max_num_seqs=4,
    )
    once = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    log_probs = []
    for ids in request["sequences"]:
        (found,) = model.generate([{"prompt_token_ids": ids}], once, use_tqdm=False)
        places = zip(found.prompt_logprobs[1:], ids[1:])  # noqa: B905  as long as each other
        log_probs.append([place[token].logprob for place, token in places])
    greedy = vllm.SamplingParams(temperature=0, max_tokens=request["tokens"])
    answers = []
    for prompt in request["prompts"]:
        (found,) = model.generate([{"prompt_token_ids": prompt}], greedy, use_tqdm=False)
        answers.append(list(found.outputs[0].token_ids))
    tokenizer = model.get_tokenizer()
    ids = [tokenizer.encode(text, add_special_tokens=False) for text, _ in request["texts"]]
    rendered = []
    for talk in request["talks"]:
        prompt = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        rendered.append(tokenizer.encode(prompt, add_special_tokens=False))
    found = {"log_probs": log_probs, "ids": ids, "rendered": rendered, "answers": answers}
    return {"version": vllm.__version__} | found


if __name__ == "__main__":
    request = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w") as answer, contextlib.redirect_stdout(sys.stderr):
        os.dup2(2, 1)  # an engine may write to the standard output itself
        json.dump({"llama_cpp": llama_cpp, "vllm": vllm}[sys.argv[1]](request), answer)
