import pytest, shutil

CASES = """sft steps=-5
sft epochs=0
sft epochs=-1.0
sft micro_batch=3
sft micro_batch=-1
sft micro_batch=1000
sft optim.lr=-1.0
sft optim.lr=nan
sft optim.lr=inf
sft optim.lr=1e30
sft optim.warmup=2.0
sft optim.warmup=-1.0
sft optim.decay=5.0
sft optim.min_lr=-3.0
sft optim.betas=[0.9,1.5]
sft optim.eps=-1.0
sft optim.max_grad_norm=0.0
sft heldout_rows=0
sft heldout_rows=-1
sft heldout=2.0
sft heldout=-1.0
sft heldout=nan
sft seed=-1
sft freeze_embeddings=yes
sft dtype=float16
sft model=text.jsonl
sft model=@corpus
sft model=run/sft.nothing
sft path=@pretrain
dpo heldout=3.0
dpo beta=-1.0
dpo beta=0.0
dpo beta=nan
dpo model=@tokenizer
dpo path=conversations.jsonl
evaluate heldout_bytes=0
evaluate heldout_bytes=-5
evaluate samples_per_kind=0
evaluate samples_per_kind=-1
evaluate corpus=@pretrain
evaluate corpus=text.jsonl
evaluate models=@pretrain
evaluate models=["@pretrain","@pretrain"]
evaluate questions=@corpus
evaluate questions=text.jsonl
evaluate preferences=text.jsonl
evaluate preferences=questions.jsonl
tokenizer sample_bytes=0
tokenizer sample_bytes=-1
tokenizer max_token_length=0
tokenizer max_token_length=1
tokenizer max_token_length=-1
tokenizer corpus=text.jsonl
tokenizer vocab_size=-1
tokenize corpus=@tokenizer
tokenize tokenizer=@corpus
tokenize tokenizer=text.jsonl
corpus min_chars=100000
corpus min_chars=-1
corpus text_field=nope
corpus heldout=0.9999999
corpus seed=-1
pretrain shards=@corpus
pretrain shards=text.jsonl
pretrain seed=-1
pretrain model.intermediate_size=0
pretrain model.max_position_embeddings=0
pretrain model.hidden_size=0
pretrain model.num_hidden_layers=0
pretrain model.rms_norm_eps=-1.0
pretrain model.rope_theta=0.0
pretrain model.rope_theta=-5.0
pretrain model.initializer_range=-1.0
pretrain model.head_dim=3
pretrain model.head_dim=-2
pretrain model.vocab_size=-1
pretrain model.num_attention_heads=3""".splitlines()
ORDER = "corpus tokenizer tokenize pretrain sft dpo evaluate".split()


@pytest.mark.parametrize("case", CASES)
def test_probe(grown, mengya, case):
    stage, o = case.split(" ", 1)
    for n in ORDER[ORDER.index(stage) :]:
        shutil.rmtree(grown / "run" / n)
    r = mengya("run", "whole.toml", f"{stage}.{o}", "--until", stage, "--out", "run")
    with open("/tmp/probe.log", "a") as f:
        last = r.err.strip().splitlines()
        if r.code == 2:
            tail = " ".join(last)[:260]
        else:
            tail = " / ".join(last[-3:])[:300] if last else "OK: " + r.out.strip().splitlines()[-2]
        f.write(f"{r.code} {case:40s} {tail}\n")
