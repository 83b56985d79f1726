"""How many characters OCR gets wrong: against transcriptions by eye.

    python bench/ocr.py FOLDER [--truth FILE]     as a folder of pictures with OCR_TRUTH.jsonl beside them

The file has a line {"file": …, "text": …} a picture. White space does not count, nor whether a form is full-width or
half-width. The error rate is the number of characters to insert, leave out or replace, by the number of those in the
transcription: `cer` without the lines that a transcription leaves out as a whole (`extra`, such as the words on a
bottle in the picture), `cer_with_extra` with them. The last line is JSON.
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
        lines = [squeezed(line) for block in document.blocks for line in block.text.replace(" | ", "\n").split("\n")]
        text = squeezed(row["text"])
        extra = extra_lines(lines, text)
        rate = distance("".join(line for line in lines if line not in extra), text) / len(text)
        whole = distance("".join(lines), text) / len(text)
        found[row["file"]] = {"cer": round(rate, 4), "cer_with_extra": round(whole, 4), "extra": extra}
        print(f"{row['file']}: {100 * rate:.2f} % wrong, not transcribed: {extra}, {seconds:.1f} s", flush=True)
    print(json.dumps({"cer": {name: one["cer"] for name, one in found.items()}, "pictures": found}, ensure_ascii=False))


def squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def extra_lines(lines: list[str], truth: str) -> list[str]:
    """Lines of which nothing is in the truth at their place."""
    whole = distance("".join(lines), truth)
    without = ("".join(lines[:i] + lines[i + 1 :]) for i in range(len(lines)))
    return [line for line, rest in zip(lines, without, strict=True) if distance(rest, truth) == whole - len(line)]


def distance(text: str, truth: str) -> int:
    """Levenshtein's."""
    row = list(range(len(truth) + 1))
    for i, character in enumerate(text, 1):
        left, row = row, [i]
        for j, right in enumerate(truth, 1):
            row.append(min(left[j] + 1, row[j - 1] + 1, left[j - 1] + (character != right)))
    return row[-1]


if __name__ == "__main__":
    main()
