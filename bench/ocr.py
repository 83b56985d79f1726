"""How many characters OCR gets wrong: against transcriptions by eye.

    python bench/ocr.py FOLDER [--truth FILE]     as a folder of pictures with OCR_TRUTH.jsonl beside them

The file has a line {"file": …, "text": …} a picture. White space does not count. The error rate is the number of
characters to insert, leave out or replace, by the number of those in the transcription: `cer_exact` as they are, `cer`
with full-width and half-width forms taken for the same. The last line is JSON.
"""

import argparse
import json
import time
import unicodedata
from pathlib import Path

from mengya.rag.reading.worker import read_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--truth", type=Path, help="OCR_TRUTH.jsonl in the folder, unless given")
    args = parser.parse_args()
    truth = args.truth or args.folder / "OCR_TRUTH.jsonl"
    found = {}
    for line in truth.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        begun = time.perf_counter()
        document = read_file(args.folder / row["file"], row["file"])
        seconds = time.perf_counter() - begun
        read = "\n".join(block.text.replace(" | ", "\n") for block in document.blocks)
        exact = error_rate(squeezed(read), squeezed(row["text"]))
        folded = error_rate(
            squeezed(unicodedata.normalize("NFKC", read)), squeezed(unicodedata.normalize("NFKC", row["text"]))
        )
        found[row["file"]] = {"cer": round(folded, 4), "cer_exact": round(exact, 4), "seconds": round(seconds, 1)}
        print(f"{row['file']}: {100 * folded:.2f} % wrong ({100 * exact:.2f} % exactly), {seconds:.1f} s", flush=True)
    print(json.dumps({"cer": {name: one["cer"] for name, one in found.items()}, "pictures": found}, ensure_ascii=False))


def squeezed(text: str) -> str:
    return "".join(text.split())


def error_rate(text: str, truth: str) -> float:
    """Levenshtein's distance by the length of the truth."""
    row = list(range(len(truth) + 1))
    for i, character in enumerate(text, 1):
        left, row = row, [i]
        for j, right in enumerate(truth, 1):
            row.append(min(left[j] + 1, row[j - 1] + 1, left[j - 1] + (character != right)))
    return row[-1] / max(1, len(truth))


if __name__ == "__main__":
    main()
