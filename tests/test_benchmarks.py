"""The benchmarks run at tiny sizes, and what they share measures what it says."""

import importlib
import itertools
import json
import subprocess
import sys
from functools import partial

import pytest
import torch

from tiny_world import ROOT

FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The programs by their bare names, as when they run."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture
def measuring():
    return importlib.import_module("measuring")


def run(name, output, *flags):
    """A benchmark as its users run it, with `--quick`; its JSON file."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--output_dir", str(output), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
    for table in record["tables"]:
        assert table["title"] in done.stdout
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert record["machine"]["threads"] >= 1 and record["machine"]["versions"]["torch"]
    assert record["name"] == name and record["settings"]["quick"] is True and record["seconds"] > 0
    return record["rows"]


def of_kind(rows, kind):
    return [row for row in rows if row["kind"] == kind]


# What they share ------------------------------------------------------------------------------------------------------


def test_turns_rotate(measuring):
    orders = itertools.islice(measuring.rotations(["a", "b", "c"]), 4)
    assert ["".join(order) for order in orders] == ["abc", "bca", "cab", "abc"]


def test_each_round_has_each_contender_once_and_the_first_round_does_not_count(measuring):
    called = []

    def measure(name):
        called.append(name)
        return float(len(called))

    times = measuring.take_turns({name: lambda name=name: measure(name) for name in "abc"}, repeats=3)
    assert "".join(called) == "abcabcbcacab"
    assert times == {"a": [4.0, 9.0, 11.0], "b": [5.0, 7.0, 12.0], "c": [6.0, 8.0, 10.0]}


def test_ratios_are_of_the_same_round(measuring):
    # 2, 3, 4, 5 and 6 times; of the sums it would be 4.8
    assert measuring.ratios([2, 6, 12, 20, 60], [1, 2, 3, 4, 10]) == (3, 4, 5)
    assert measuring.quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_a_contender_beside_another(measuring):
    found = measuring.compare({"a": [1, 2, 3, 4, 10], "b": [2, 6, 12, 20, 60]}, "a")
    assert found["a"] == measuring.Compared(3, 1, 1, 1)
    assert found["b"] == measuring.Compared(12, 4, 3, 5) and found["b"].spread == "3.00 … 5.00"


def test_slope_is_the_exponent(measuring):
    sizes = [1, 2, 4, 8]
    assert measuring.slope(sizes, [3 * size for size in sizes]) == pytest.approx(1)
    assert measuring.slope(sizes, [5 * size**2 for size in sizes]) == pytest.approx(2)


def test_columns_behind_the_first_are_numbers(measuring):
    assert measuring.markdown_table(("a", "b"), [("x", 1)]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_the_peak_of_a_child_is_its_own(measuring, tmp_path):
    program = tmp_path / "hungry.py"
    program.write_text("def eat(mb):\n    return {'length': len(bytearray(b'x') * (mb << 20))}\n", encoding="utf-8")
    ours = bytearray(b"x") * (400 << 20)  # a process may inherit the peak of the one that starts it
    small, large = (measuring.in_child(str(program), "eat", mb=mb) for mb in (1, 101))
    assert large["length"] == 101 << 20 and len(ours) == 400 << 20
    assert 95 < large["peak_mb"] - small["peak_mb"] < 105
    assert small["peak_mb"] < 100


def test_operations_are_counted_with_attention():
    models = importlib.import_module("models")
    query = torch.randn(1, 1, 4, 8)
    attention = partial(torch.nn.functional.scaled_dot_product_attention, query, query, query)
    # two products of 4 x 8 x 4
    assert models.count_flops(attention) == 2 * 2 * 4 * 8 * 4


def test_a_line_of_json_may_hold_any_character(tmp_path):
    json_lines = importlib.import_module("json_lines")
    rows = [{"text": "a\u2028b\x85c"}, {"text": "é\n"}, [1, None]]
    json_lines.write_json_lines(tmp_path / "rows.jsonl", rows)
    assert json_lines.read_json_lines(tmp_path / "rows.jsonl") == rows
    assert "é" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")


def test_flags_override_the_quick_defaults(measuring, monkeypatch):
    price = importlib.import_module("fusion_price")
    monkeypatch.setattr(sys, "argv", ["fusion_price.py", "--quick", "--repeats", "7"])
    args = measuring.parse(price.PriceArguments, price.QUICK)
    assert args.repeats == 7 and args.sizes == ["tiny"]
    monkeypatch.setattr(sys, "argv", ["fusion_price.py"])
    assert measuring.parse(price.PriceArguments, price.QUICK).sizes == ["BERT-base", "MiniLM"]


def test_a_tweet_without_links_and_names():
    clean = importlib.import_module("mvsa_folds").clean_text
    assert (
        clean("RT @a_b1: Look,  @c! me@d.org http://t.co/x1 https://t.co #fun http:/…") == "Look, @user! me@d.org #fun"
    )
    assert clean("RT no name") == "no name" and clean("ART @x") == "ART @user"
    assert clean(" RT @a: http://t.co/x") == ""


def test_rows_that_share_text_or_picture_are_one_group_and_their_labels_are_compared(tmp_path):
    folds = importlib.import_module("mvsa_folds")
    for name, content in (("a", "1"), ("b", "1"), ("c", "2"), ("d", "3")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    rows = [
        {"text": text, "image": image}
        for text, image in (("One  day", "a"), ("two", "b"), ("TWO", "c"), ("three", "d"), ("one day", "a"))
    ]
    keys = folds.read_keys(rows, tmp_path)
    groups = folds.group_rows(keys)
    assert [group == groups[0] for group in groups] == [True, True, True, False, True]
    # texts: "one day" agrees, "two" does not; picture 1 has three rows: one pair of three agrees
    labels = ["good", "bad", "good", "good", "good"]
    assert folds.label_agreement([text for text, _ in keys], labels) == (2, 0.5)
    count, share = folds.label_agreement([picture for _, picture in keys], labels)
    assert count == 1 and share == pytest.approx(1 / 3)
    assert folds.label_agreement(keys, labels) == (1, 1.0)


# The programs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def price(tmp_path_factory):
    """The folder of a run, and its rows."""
    folder = tmp_path_factory.mktemp("price")
    return folder, run("fusion_price", folder)


def test_fused_models_cost_more_than_the_plain_one(price):
    rows = price[1]
    for mode in ("training", "inference"):
        found = of_kind(rows, mode)
        assert {(row["contender"], row["length"]) for row in found} == {
            (name, length) for name in ("plain", "fused", "lean") for length in (8, 16)
        }
        for row in found:
            assert row["seconds"] > 0 and row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
            if row["contender"] == "plain":
                assert row["ratio"] == row["flops_ratio"] == 1 and row["flops"] > 0
            else:
                assert row["flops_ratio"] > 1
    lean, fused = (
        next(row["flops"] for row in of_kind(rows, "training") if row["contender"] == name)
        for name in ("lean", "fused")
    )
    assert lean < fused
    assert any(row["operator"] == "aten::addmm" and row["fused_ms"] > 0 for row in of_kind(rows, "profile"))


def check_peers(rows):
    for row in rows:
        assert row["parameters"] > 0 and row["training_mb"] >= row["inference_mb"] > 0
        assert row["training_examples_per_second"] > 0 and row["inference_flops"] > 0


def test_only_the_contenders_that_are_named_take_part(tmp_path):
    rows = run("peers", tmp_path, "--contenders", "VTFusion, cached", "ViLT")
    assert [row["contender"] for row in rows] == ["VTFusion, cached", "ViLT"]
    check_peers(rows)


@pytest.mark.slow
def test_a_trained_cnn_costs_more_than_a_frozen_one_or_none(tmp_path):
    peers = importlib.import_module("peers")
    rows = run("peers", tmp_path)
    assert [row["contender"] for row in rows] == list(peers.CONTENDERS)
    check_peers(rows)
    flops = {row["contender"]: row["training_flops"] for row in rows}
    assert flops["VTFusion, cached"] < flops["VTFusion, ResNet-50 frozen"] < flops["VTFusion, ResNet-50 trained"]
    assert flops["VisualBERT, cached"] < flops["VisualBERT, ResNet-50 frozen"]


@pytest.mark.parametrize("name", ["ViLT", "VisualBERT, cached", "LXMERT, cached", "BridgeTower", "FLAVA"])
def test_a_peer_reads_words_and_picture(name):
    peers = importlib.import_module("peers")
    args = peers.SizeArguments(**peers.QUICK)
    model, batch = peers.make_contender(peers.CONTENDERS[name], args)
    del batch["labels"]
    model.eval()
    pictures = [key for key in batch if key in ("pixel_values", "visual_embeds", "visual_feats")]
    with torch.no_grad():
        logits = model(**batch).logits
        assert logits.shape == (args.batch_size, args.length, peers.NUM_LABELS)
        words = {**batch, "input_ids": batch["input_ids"].flip(1)}
        assert not torch.allclose(model(**words).logits, logits, atol=1e-5)
        other = {**batch, **{key: batch[key].flip(0) for key in pictures}}
        assert not torch.allclose(model(**other).logits, logits, atol=1e-7)


@pytest.mark.slow
def test_growth_of_every_series_and_stage(tmp_path):
    rows = run("growth", tmp_path)
    blocks = of_kind(rows, "block")
    sizes = {name: [row["size"] for row in blocks if row["series"] == name] for name in ("L", "N", "M", "batch")}
    assert sizes == {"L": [16, 32, 64], "N": [32, 64, 128], "M": [1, 2, 4], "batch": [1, 2, 4]}
    assert all(row["seconds"] > 0 and row["memory_mb"] > 0 for row in blocks)
    assert {(row["stage"], row["count"]) for row in of_kind(rows, "rows")} == {
        (stage, count) for stage in ("pairing by name", "caching features", "data of an epoch") for count in (30, 60)
    }
    assert all(row["seconds"] > 0 for row in of_kind(rows, "rows"))


def test_series_double_up_to_their_ends():
    growth = importlib.import_module("growth")
    series = growth.make_series(growth.GrowthArguments())
    assert list(series["L"])[-1] == 4096 and list(series["N"])[-1] == 16384
    assert all(b == 2 * a for sizes in series.values() for a, b in itertools.pairwise(sizes))
    assert series["L and N"][16384]["length"] == 4096


@pytest.mark.slow
def test_what_has_changed_is_encoded_again_and_nothing_else(tmp_path):
    rows = run("feature_cache", tmp_path)
    changes = of_kind(rows, "change")
    assert len(changes) == 8 and all(row["encoded"] == row["expected"] for row in changes)
    assert {row["contender"] for row in of_kind(rows, "epoch")} == {
        "cached features",
        "without the cache",
        "text alone",
    }
    assert all(row["seconds"] > 0 for row in [*of_kind(rows, "epoch"), *of_kind(rows, "start")])
    half, full = (
        next(row["bytes_per_image"] for row in of_kind(rows, "bytes") if row["contender"] == name)
        for name in ("float16", "float32")
    )
    assert 0 < half < full
    assert [row["count"] for row in of_kind(rows, "many")] == [40, 80]


@pytest.mark.slow
def test_an_exported_file_gives_the_logits_of_pytorch_and_8_bits_nearly(tmp_path):
    pytest.importorskip("onnxruntime")
    rows = run("serving", tmp_path)
    backends = {row["contender"]: row for row in of_kind(rows, "backend")}
    assert list(backends) == ["eager", "onnx", "int8"]
    assert all(row["seconds"] > 0 for row in of_kind(rows, "pipeline"))
    assert backends["onnx"]["logit_difference"] < 1e-4 < backends["int8"]["logit_difference"]
    assert backends["int8"]["file_mb"] < backends["onnx"]["file_mb"]


def test_there_is_no_result_without_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(FOLDER / "gpu_step.py"), "--quick", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "needs a CUDA GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["VTFusion, ViT trained", "VTFusion, ViT frozen"])
def test_a_step_for_gpus_trains(name):
    gpu_step, models, peers = (importlib.import_module(file) for file in ("gpu_step", "models", "peers"))
    args = gpu_step.GpuArguments(**gpu_step.QUICK)
    model, batch = peers.make_contender(gpu_step.CONTENDERS[name], args)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    models.make_training_step(model)(batch, bf16=True)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert any("text_model" in key for key in changed)
    assert any("vision_model" in key for key in changed) == name.endswith("trained")


def test_a_page_of_all_tables(price):
    pytest.importorskip("matplotlib")
    folder = price[0]
    page = importlib.import_module("run_all").write_page(folder, ["fusion_price"]).read_text(encoding="utf-8")
    record = json.loads((folder / "fusion_price.json").read_text(encoding="utf-8"))
    assert len(record["tables"]) == 2 and all(table["title"] in page for table in record["tables"])
    assert "](figures/performance-fusion_price.png)" in page
    assert (folder / "figures" / "performance-fusion_price.png").stat().st_size > 10_000


@pytest.mark.slow
def test_all_programs_leave_results_and_figures(tmp_path):
    pytest.importorskip("matplotlib")
    programs = ["feature_cache", "growth", "peers"]
    command = [sys.executable, str(FOLDER / "run_all.py"), "--quick", "--output_dir", str(tmp_path)]
    subprocess.run([*command, "--programs", *programs], capture_output=True, check=True)
    assert {path.stem for path in tmp_path.glob("*.json")} == set(programs)
    assert len(list((tmp_path / "figures").glob("*.png"))) == len(programs)


# Beside AutoGluon -----------------------------------------------------------------------------------------------------


def test_entities_of_characters_and_back():
    job, whole = importlib.import_module("autogluon_job"), importlib.import_module("whole_job")
    row = {
        "tokens": ["Ada", "Lovelace", "met", "Bob", "Ada", "."],
        "ner_tags": ["B-PER", "I-PER", "O", "B-PER", "B-PER", "O"],
    }
    found = job.entities_of(row)
    assert [(e["entity_group"], e["start"], e["end"]) for e in found] == [
        ("PER", 0, 12),
        ("PER", 17, 20),
        ("PER", 21, 24),
    ]
    spans = [[e["entity_group"], e["start"], e["end"]] for e in found]
    assert whole.tag_words(row["tokens"], spans) == row["ner_tags"]
    # a part of a word tags it
    assert whole.tag_words(["Ada", "Bob"], [["PER", 1, 2]]) == ["B-PER", "O"]


def test_both_are_scored_alike():
    whole = importlib.import_module("whole_job")
    rows = [{"tokens": ["Ada", "met", "Bob"], "ner_tags": ["B-PER", "O", "B-PER"]}]
    assert whole.score("ner", rows, [["B-PER", "O", "O"]]) == {"f1": pytest.approx(2 / 3)}
    rows = [{"label": "good"}, {"label": "bad"}, {"label": "bad"}]
    scores = whole.score("classification", rows, ["good", "good", "bad"])
    assert scores == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx(2 / 3)}
