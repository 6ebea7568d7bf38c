"""
Coverage-guided fuzzing of what takes input from outside, with atheris (extra `fuzz`): only documented errors may come
out, each with its place, and what comes back holds together.

    make fuzz ARGS="--seconds 600"
    make fuzz ARGS="image conll --seconds 60"

Each target is a function of bytes. It runs in a process of its own; an input that shows something new is kept in
`outputs/fuzz/<target>/`, as `<name>.bin` with its traceback in `<name>.txt`, and the command then fails. To run it again:

    python tests/campaigns/fuzz.py image --input outputs/fuzz/image/<name>.bin
"""

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if __name__ == "__main__":  # else pytest has one of its own
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="vtfusion-fuzz-")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

INPUT = os.environ.get("VTFUSION_FUZZ_TARGET")  # set where a target runs
if INPUT:
    import atheris

    instrumented = atheris.instrument_imports(include=["vtfusion", "PIL"])
else:
    instrumented = nullcontext()

with instrumented:
    import datasets
    import numpy as np
    import PIL.Image
    import torch
    from datasets import Dataset, DatasetDict
    from transformers import ViTImageProcessor

    from tokenizers_for_tests import TOKENIZERS
    from vtfusion import VTFusionProcessor
    from vtfusion.images_vtfusion import decode_image
    from vtfusion.training.image_bank import ImageBank
    from vtfusion.training.images import ImageStore
    from vtfusion.training.pairing import pair_by_lexicon, pair_by_manifest
    from vtfusion.training.streams import named_errors
    from vtfusion.training.tags import SCHEMES, detect_scheme, find_stray_inside_tags, split_tag, to_iob2
    from vtfusion.training.token_data import load_token_classification_dataset, open_token_streams

LABELS = {0: "O", 1: "B-X", 2: "I-X"}
EXPECTED = (ValueError, TypeError, OSError)
_PLACE = re.compile(r"row \d|line \d|column '|field [`']|position \d|split|\.(conll|jsonl|csv)\b", re.IGNORECASE)


class Finding(AssertionError):
    """Something that does not hold."""


def hold(condition: object, what: str) -> None:
    """Raises a [`Finding`] if the condition is false."""
    if not condition:
        raise Finding(what)


def outcome(function: Callable[[], object]) -> tuple[object, Exception | None]:
    """What a function returns, or its documented error; any other error passes through."""
    try:
        return function(), None
    except EXPECTED as error:
        hold(_PLACE.search(str(error)), f"{type(error).__name__} without a place: {error}")
        hold(not re.search(r"object at 0x|<class '_", str(error)), f"a message for nobody: {error}")
        return None, error


class Draw:
    """Values out of bytes, always the same ones; zeros and empty ones when the bytes are used up."""

    def __init__(self, data: bytes):
        self.data, self.place = data, 0

    def bytes(self, count: int) -> bytes:
        part = self.data[self.place : self.place + count]
        self.place += count
        return part

    def number(self, below: int) -> int:
        return int.from_bytes(self.bytes(2), "little") % below

    def pick(self, values: Iterable[object]) -> object:
        values = list(values)
        return values[self.number(len(values))]

    def text(self, longest: int = 12) -> str:
        """Any characters, halves of surrogate pairs included."""
        return self.bytes(self.number(longest)).decode("utf-8", "surrogateescape")


# Targets --------------------------------------------------------------------------------------------------------------


def image(data: bytes) -> None:
    """Pixels or a ValueError, the same ones every time; the first byte says how the others are given."""
    how, data = data[:1], data[1:]
    if how >= b"\xc0":
        return _array(Draw(data))
    if how >= b"\x60":
        data = with_checksums(data)
    store = ImageStore()
    rows = Dataset.from_dict(
        {"images": [[{"bytes": data, "path": "a.jpg"}]]},
        features=datasets.Features({"images": datasets.List(datasets.Image(decode=False))}),
    )
    keys = store.add_split("train", rows)[0]
    pixels, error = outcome(lambda: store.load(keys[0]))
    if error is not None:
        return hold(str(error).startswith("train split, row 0, field `images`: a.jpg"), f"no place: {error}")
    hold(pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size, f"{pixels.shape}")
    hold(pixels.shape[0] * pixels.shape[1] <= PIL.Image.MAX_IMAGE_PIXELS, f"too large: {pixels.shape}")
    hold(np.array_equal(decode_image(data), pixels), "other pixels the second time")


def _array(draw: Draw) -> None:
    shape = [draw.number(6) for _ in range(draw.number(5))]
    kind = np.dtype(
        draw.pick(
            ["?", "b", "B", "h", "H", "i", "I", "q", "Q", "e", "f", "d", "F", "D", "U3", "O", "S2", "M8[s]", "V2"]
        )
    )
    raw = draw.bytes(int(np.prod(shape)) * max(kind.itemsize, 1))
    if kind.hasobject:
        array = np.full(shape, None, kind)
    else:
        array = np.zeros(int(np.prod(shape)), kind)
        raw = raw[: len(raw) // kind.itemsize * kind.itemsize]
        if kind.kind not in "UM":
            array[: len(raw) // kind.itemsize] = np.frombuffer(raw, kind)
        array = array.reshape(shape)
    given = array
    if kind.kind in "?biuf" and kind.char not in "HIQ" and draw.number(2):
        given = torch.from_numpy(array)
    processor = _processor("bert")
    pixels, error = outcome(lambda: processor(text="a", images=[[given]], return_tensors="pt")["pixel_values"])
    if error is None:
        hold(torch.isfinite(pixels).all() and pixels.shape[:3] == (1, 1, 3), f"{array.shape} {kind}")


_PROCESSORS: dict[str, VTFusionProcessor] = {}


def _processor(name: str) -> VTFusionProcessor:
    if name not in _PROCESSORS:
        images = ViTImageProcessor(size={"height": 4, "width": 4})
        _PROCESSORS[name] = VTFusionProcessor(images, TOKENIZERS[name](), window_stride=2)
    return _PROCESSORS[name]


def processor(data: bytes) -> None:
    """Every word is read once at most and gets one prediction; offsets slice the text."""
    draw = Draw(data)
    tokenizer = str(draw.pick(TOKENIZERS))
    texts: list = []
    for _ in range(draw.number(3) + 1):
        words = [draw.text() for _ in range(draw.number(9))]
        texts.append(draw.pick([words, " ".join(words), tuple(words), np.array(words), None, [*words, None], 7]))
    options: dict = {"max_length": draw.pick([None, 3, 8, 12, 40]), "stride": draw.pick([None, None, 0, 1, 5])}
    options = {name: value for name, value in options.items() if value is not None}
    if draw.number(2):
        longer = draw.number(3) - 1
        options["word_labels"] = [
            [draw.number(5) - 1 for _ in range(max(0, len(text) + longer * (draw.number(4) == 0)))]
            for text in texts
            if isinstance(text, list | tuple | str)
        ]
    if draw.number(4) == 0:
        options["text_pair"] = [draw.text() for _ in texts]
    encoder = _processor(tokenizer)
    batch, error = outcome(lambda: encoder(text=texts, return_tensors="pt", **options))
    if error is not None:
        return
    seen: list[list[int]] = [[] for _ in texts]
    for window, row in enumerate(batch.row_of_window):
        positions = batch.word_positions[window]
        seen[row] += positions[positions >= 0].tolist()
        for token, (start, end) in enumerate(batch.token_spans[window]):
            hold(
                (start == end == -1) or 0 <= start < end <= len(batch.rows[row].text), f"span {start, end} of {token}"
            )
    for row, words in zip(batch.rows, seen, strict=True):
        hold(len(words) == len(set(words)), "a word is read twice")
        hold([row.text[start:end] for start, end in row.spans] == row.words, "offsets")
    logits = torch.zeros(*batch.word_positions.shape, 3)
    logits[..., 1] = 1
    outputs = SimpleNamespace(logits=logits)
    for decoding in ("argmax", "viterbi"):
        labels = encoder.predict_word_labels(outputs, batch, LABELS, decoding)
        for row, words, said in zip(batch.rows, seen, labels, strict=True):
            hold(len(said) == len(row.words), "one prediction for each word")
            hold([place for place, label in enumerate(said) if label != "O"] == sorted(words), "what was read")
    if "labels" in batch:
        for window, row in enumerate(batch.row_of_window):
            for token, word in enumerate(batch.word_positions[window]):
                wanted = -100 if word < 0 else options["word_labels"][row][word]
                hold(batch["labels"][window, token] == wanted, "labels")
    whole = encoder(text=texts, return_tensors="pt", **{**options, "max_length": 10_000, "stride": None})
    found = encoder.merge_windows(torch.zeros(whole.word_positions.shape), whole)[1]
    for words, is_found in zip(seen, found, strict=True):
        hold(sorted(words) == is_found.nonzero().flatten().tolist(), "windows lose a word")


def _stream(path: Path) -> list[list[str]]:
    with named_errors("train split"):  # as where streams are written
        return [row["tokens"] for row in open_token_streams(train_file=path)["train"]]


def _read(data: bytes, ending: str) -> None:
    """Stream and load a file: the same words, or an error of both that names the file."""
    folder = Path(tempfile.mkdtemp(prefix="vtfusion-fuzz-"))
    path = folder / f"a.{ending}"
    try:
        path.write_bytes(data)
        rows, stream_error = outcome(lambda: _stream(path))
        if stream_error is None:
            for words in rows:
                hold(words and all(isinstance(word, str) for word in words), f"words {words!r}")
        if ending == "conll" and zlib.crc32(data) % 8:  # loading takes ten times as long
            return
        loaded, error = outcome(
            lambda: load_token_classification_dataset(train_file=path, cache_dir=folder / "cache")["train"]
        )
        hold(error is None or f"a.{ending}" in str(error), f"the file is not named: {error}")
        if error is None:
            hold(stream_error is None, f"the stream alone fails: {stream_error}")
            hold(loaded["tokens"][:] == rows, f"other words as a stream: {loaded['tokens'][:]!r} {rows!r}")
            hold(all(map(len, loaded["ner_tags"])), "tags")
            hold([len(tags) for tags in loaded["ner_tags"]] == [len(words) for words in rows], "a tag for each word")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def conll(data: bytes) -> None:
    """CoNLL columns."""
    _read(data, "conll")


def jsonl(data: bytes) -> None:
    """JSON lines."""
    _read(data, "jsonl")


def csv(data: bytes) -> None:
    """CSV."""
    _read(data, "csv")


_TEXTS = DatasetDict({"train": Dataset.from_dict({"tokens": [["Anna", "Lee"], ["Rome"]], "id": ["x", "7"]})})


def pairing(data: bytes) -> None:
    """A manifest (JSON lines or CSV) and the metadata of an image bank."""
    folder = Path(tempfile.mkdtemp(prefix="vtfusion-fuzz-"))
    kind, data = data[:1], data[1:]
    try:
        (folder / "a.png").touch()
        if kind < b"\x60":
            (folder / "metadata.jsonl").write_bytes(data)
            bank, error = outcome(lambda: ImageBank.from_folder(folder))
            if error is None:
                hold(bank.images and all(os.path.isfile(image.path) for image in bank.images), "files")
                hold(all(match.image in bank.images for match in bank.match(["Anna", "Lee"])), "match")
                if any(image.names for image in bank.images):
                    pair_by_lexicon(_TEXTS, bank)
            return
        path = folder / ("pairs.csv" if kind >= b"\xb0" else "pairs.jsonl")
        path.write_bytes(data)
        paired, error = outcome(lambda: pair_by_manifest(_TEXTS, path))
        if error is None:
            train = paired["train"]
            hold(len(train) == 2 and train["tokens"][:] == _TEXTS["train"]["tokens"][:], "rows")
            for images, ids, scores in zip(train["images"], train["image_ids"], train["image_scores"], strict=True):
                hold(len(images or []) == len(ids) == len(scores), "columns")
        else:
            hold("pairs." in str(error) or "manifest" in str(error), f"the file is not named: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tags(data: bytes) -> None:
    """Any tags become IOB2 of the same types, or are named."""
    draw = Draw(data)
    sequences: list[list] = []
    for _ in range(draw.number(3) + 1):
        sequence: list = []
        for _ in range(draw.number(6)):
            prefix, kind = (
                draw.pick(["B-", "I-", "E-", "S-", "L-", "U-", "O", ""]),
                draw.pick(["", "A", "B", "-", None]),
            )
            sequence.append(draw.text() if kind is None else f"{prefix}{kind}")
        sequences.append(sequence)
    scheme, error = outcome(lambda: detect_scheme(sequences))
    if error is not None:
        return
    hold(scheme in SCHEMES, f"{scheme}")
    for sequence in sequences:
        converted = to_iob2(sequence, str(scheme))
        hold([split_tag(tag)[1] for tag in converted] == [split_tag(tag)[1] for tag in sequence], "types")
        hold(find_stray_inside_tags([converted]).count == 0 and to_iob2(converted, "IOB2") == converted, "IOB2")
        hold(to_iob2(sequence) == converted, "schemes contradict each other")


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (processor, image, conll, jsonl, csv, pairing, tags)
}


# What the search begins with ------------------------------------------------------------------------------------------


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums, which no change at random would hit."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    place, fixed = 8, data[:8]
    while place + 12 <= len(data):
        length = min(struct.unpack(">I", data[place : place + 4])[0], len(data) - place - 12)
        body = data[place + 4 : place + 8 + length]
        fixed += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return fixed


def _pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4), np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    found = []
    for kind, modes in {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
        "GIF": ("P",),
        "JPEG": ("L", "RGB", "CMYK"),
        "WEBP": ("RGBA",),
        "TIFF": ("1", "RGB", "CMYK", "I;16", "F", "LAB"),
        "BMP": ("RGB", "1"),
        "PPM": ("RGB", "L"),
        "JPEG2000": ("RGB",),
    }.items():
        for mode in modes:
            buffer = io.BytesIO()
            picture = PIL.Image.fromarray(pixels).convert("RGB" if mode in ("I;16", "F", "LAB") else mode)
            if mode in ("I;16", "F"):
                picture = PIL.Image.fromarray(pixels[:, :, 0].astype(np.uint16 if mode != "F" else np.float32))
            elif mode == "LAB":
                picture = PIL.Image.new("LAB", (4, 3))
            options = {"exif": exif.tobytes()} if kind in ("PNG", "JPEG", "WEBP", "TIFF") and mode != "LAB" else {}
            picture.save(buffer, kind, **options)
            found.append(buffer.getvalue())
    return found


def seeds(target: str) -> list[bytes]:
    """Good inputs of a target, and some that showed something once."""
    rows = [{"tokens": ["Anna", "Lee"], "ner_tags": ["B-PER", "I-PER"]}, {"tokens": "Rome", "ner_tags": "B-LOC"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    manifest = b'{"row": 0, "image": "a.png", "score": 0.5, "split": "train"}\n{"id": "7", "image": null}\n'
    bank = b'{"image": "a.png", "name": "Anna", "aliases": ["Lee"], "captions": ["A b"], "kind": "k", "id": 3}\n'
    return {
        "processor": [
            bytes(range(256)) * 2,
            b"\3\0" + b"\x08\0fox \xf0\x9f\x98\x80" * 20,
            b"\xd7\xa9\xe2\x80\x8d\0" * 60,
        ],
        "image": [
            *(b"\0" + picture for picture in _pictures()),
            *(b"\x80" + picture for picture in _pictures() if picture.startswith(b"\x89PNG")),
            *(b"\xc0" + bytes([3, 0, 3, 0, 4, 0, 4, 0, kind, 0]) + bytes(range(200)) for kind in range(19)),
        ],
        "conll": [
            b"Anna B-PER\nLee I-PER\n\nRome B-LOC\n",
            b"\xef\xbb\xbf-DOCSTART- -X- O O\r\n\r\nAnna NNP B-NP B-PER\r\n",
            b"IMGID:12\nAnna\tO\n# a comment\n\nLee\tS-X\n",
        ],
        "jsonl": [lines, b'{"tokens": ["a"], "ner_tags": ["O"], "image": null}\n', b'{"tokens": ["\\ud83d"]}\n'],
        "csv": [
            b'tokens,ner_tags\nAnna Lee,B-PER I-PER\n"[""Rome""]","[""B-LOC""]"\n',
            b'tokens,ner_tags,image\na,O,""\n',
        ],
        "pairing": [b"\0" + bank, b"\x70" + manifest, b"\xf0row,image,score\n0,a.png,1\n", b"\xf0id,image\nx,a.png\n"],
        "tags": [bytes(range(0, 250, 3)) * 3, b"\2\0\5\0" + bytes([0, 0, 1, 0]) * 20],
    }[target]


# The search -----------------------------------------------------------------------------------------------------------


def find(target: str, data: bytes) -> str | None:
    """The traceback of what an input shows, `None` if all holds."""
    try:
        TARGETS[target](data)
    except Exception:
        return traceback.format_exc()
    return None


def _signature(trace: str) -> str:
    """What two inputs that show the same have in common: the kind of error, and where it came from."""
    frames = re.findall(r'File ".*?([^/"]+)", line (\d+)', trace)
    last = re.sub(r"'.*?'|\d.*", "", trace.strip().splitlines()[-1])
    return repr((frames[-3:], last[:60]))


def _search(target: str, folder: Path, arguments: list[str]) -> None:
    """Runs in the process of a target until libFuzzer has had enough; findings go to files, and it goes on."""
    known: set[str] = set()
    PIL.Image.MAX_IMAGE_PIXELS = 2**18
    datasets.disable_progress_bars()

    def one(data: bytes) -> None:
        trace = find(target, data)
        if trace is None or _signature(trace) in known:
            return
        known.add(_signature(trace))
        name = hashlib.sha256(_signature(trace).encode()).hexdigest()[:12]
        (folder / f"{name}.bin").write_bytes(data)
        (folder / f"{name}.txt").write_text(trace, encoding="utf-8", errors="backslashreplace")

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def _run(target: str, seconds: int, output: Path) -> int:
    """One target in a process of its own; returns the number of findings."""
    folder, corpus = output / target, output / target / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    for old in (*folder.glob("*.bin"), *folder.glob("*.txt"), *folder.glob("*-*")):
        old.unlink()
    arguments = [
        f"-max_total_time={seconds}",
        "-timeout=30",
        "-rss_limit_mb=6000",
        "-max_len=4096",
        "-print_final_stats=1",
    ]
    arguments += [f"-artifact_prefix={folder}/", str(corpus)]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, target, "--output", str(output), "--arguments", *arguments],
        env={**os.environ, "VTFUSION_FUZZ_TARGET": target},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    (folder / "log.txt").write_text(done.stderr[-100_000:], encoding="utf-8")
    executions = re.findall(r"number_of_executed_units: (\d+)|^#(\d+)", done.stderr, re.MULTILINE)
    count = max((int(number) for pair in executions for number in pair if number), default=0)
    found = sorted(folder.glob("*.bin")) + [
        path for kind in ("crash", "timeout", "oom", "leak") for path in folder.glob(f"{kind}-*")
    ]
    elapsed = time.perf_counter() - started
    print(f"{target}: {count:,} executions in {elapsed:.0f} s, {len(found)} findings", flush=True)
    for path in found:
        trace = path.with_suffix(".txt")
        last = trace.read_text(encoding="utf-8").strip().splitlines()[-1] if trace.is_file() else "crash or hang"
        print(f"  {path}: {last[:200]}", flush=True)
    if (done.returncode != 0 and not found) or count == 0:
        print(done.stderr[-2000:], flush=True)
        return 1
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help=f"{', '.join(TARGETS)}; by default all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--output", type=Path, default=Path("outputs/fuzz"), help="where inputs are kept")
    parser.add_argument("--input", type=Path, help="run one target on this file alone")
    parser.add_argument("--arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    targets = arguments.targets or list(TARGETS)
    if INPUT:
        _search(targets[0], arguments.output / targets[0], arguments.arguments)
    elif arguments.input:
        trace = find(targets[0], arguments.input.read_bytes())
        sys.exit(trace)
    else:
        sys.exit(min(1, sum([_run(target, arguments.seconds, arguments.output) for target in targets])))


if __name__ == "__main__":
    main()
