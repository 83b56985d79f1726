"""The time to a given held-out loss: ours against transformers' Trainer with its defaults, by turns on one clock.

    python bench/time_to_loss.py --text texts/ [--minutes 5] [--out runs/time-to-loss] [--device cpu|cuda]

Both train the same shape (24M parameters, 512 wide, 8 layers) on the same text with the same tokenizer (6,400 entries).
The Trainer has its defaults: AdamW at 5e-5, a linear schedule to 0, documents padded to the longest of a batch of 8 and
cut at 512 tokens, in the strongest type of the machine. It trains for `--minutes` of its own; then ours trains until
its held-out bits per byte, measured the same way on the same documents, are no more than the Trainer's.

"""
