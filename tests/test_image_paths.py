"""A data file opens no image outside of its folder, whatever it names, unless the user says so."""

import os
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from huggingface_hub import constants
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image as Pillow

from vtfusion.training.arguments import CaptionDataArguments
from vtfusion.training.caption_data import load_caption_dataset
from vtfusion.training.captions import open_caption_streams
from vtfusion.training.classification_data import load_classification_dataset
from vtfusion.training.image_bank import ImageBank
from vtfusion.training.image_paths import ImageFolders, image_item
from vtfusion.training.pairing import pair_by_manifest, save_paired_dataset
from vtfusion.training.token_data import load_token_classification_dataset
from writing import write_jsonl

REFUSED = r"does not lie in .*`image_folder`.*`allow_outside_paths`"


@pytest.fixture
def places(tmp_path):
    """`set/` with pictures of its own and links that lead out, `elsewhere/` with what none of its files may open."""
    for name in ("set/in.png", "set/deep/er/in.png", "elsewhere/secret.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (4, 4), "red").save(tmp_path / name)
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "elsewhere" / "secret.png")
    (tmp_path / "set" / "way_out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "own.png").symlink_to("deep/er/in.png")
    (tmp_path / "settee").symlink_to(tmp_path / "elsewhere")  # begins like the name of the folder
    return tmp_path


OUTSIDE = [
    "../elsewhere/secret.png",
    "deep/../../elsewhere/secret.png",
    "{root}/elsewhere/secret.png",
    "{root}/set/../elsewhere/secret.png",
    "{root}/set/way_out/../secret.png",
    "{root}/settee/secret.png",
    "link.png",
    "way_out/secret.png",
    "file://{root}/elsewhere/secret.png",
    "local://{root}/elsewhere/secret.png",
    "zip://secret.png::{root}/elsewhere/secret.zip",
    "zip://secret.png::file://{root}/set/a.zip",
    "simplecache::zip://secret.png::{root}/set/a.zip",
    "hf://datasets/someone/private/secret.png",
    "s3://bucket/secret.png",
]
INSIDE = [
    "in.png",
    "deep/er/in.png",
    "deep/../in.png",
    "own.png",
    "{root}/set/in.png",
    "{root}/set/deep/er/../er/in.png",
]


def write_row(places, image, kind="jsonl"):
    row = {"tokens": ["a"], "ner_tags": ["O"], "image": image.format(root=places)}
    path = places / "set" / f"a.{kind}"
    if kind == "jsonl":
        return write_jsonl(path, [row])
    if kind == "csv":
        Dataset.from_list([{**row, "tokens": "a", "ner_tags": "O"}]).to_csv(path)
        return path
    if kind == "conll":
        path.write_text(f"IMGID:{row['image'].removesuffix('.jpg')}\na O\n", encoding="utf-8")
        return path
    stored = [{**row, "image": {"bytes": None, "path": row["image"]}}]
    types = {"tokens": List(Value("string")), "ner_tags": List(Value("string"))}
    if kind == "parquet":  # the bytes are embedded where `datasets` itself writes such a file
        table = Dataset.from_list(stored, features=Features({**types, "image": Image(decode=False)})).data.table
        import pyarrow.parquet as pq

        pq.write_table(table, path)
        return path
    Dataset.from_list([{**row, "image": [row["image"]]}]).save_to_disk(path)
    return path


@pytest.mark.parametrize("image", OUTSIDE)
def test_paths_that_lead_out_are_refused(places, image):
    file = write_row(places, image)
    with pytest.raises(ValueError, match=REFUSED) as error:
        load_token_classification_dataset(train_file=file)
    assert f"train split ({file}), row 0, field `image`: " in str(error.value)


@pytest.mark.parametrize("image", INSIDE)
def test_paths_that_stay_inside_are_taken(places, image):
    (images,) = load_token_classification_dataset(train_file=write_row(places, image))["train"]["images"]
    assert Pillow.open(images[0]["path"]).size == (4, 4)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved"])
def test_every_format_is_checked(places, kind):
    file = write_row(places, "{root}/elsewhere/secret.png", kind)
    with pytest.raises(ValueError, match=REFUSED) as error:
        load_token_classification_dataset(train_file=file)
    assert "row 0, field `image`" in str(error.value) and str(file) in str(error.value)
    for given_folder in ({"image_folder": places / "elsewhere"}, {"allow_outside_paths": True}):
        (images,) = load_token_classification_dataset(train_file=file, **given_folder)["train"]["images"]
        assert images[0]["path"] == str(places / "elsewhere" / "secret.png")
    # what was allowed once is not allowed for ever
    with pytest.raises(ValueError, match=REFUSED):
        load_token_classification_dataset(train_file=file)


def test_ids_of_a_conll_file_cannot_lead_out(places):
    (places / "elsewhere" / "secret.png").rename(places / "elsewhere" / "secret.jpg")
    file = write_row(places, "../elsewhere/secret", "conll")
    with pytest.raises(ValueError, match=REFUSED):
        load_token_classification_dataset(train_file=file, image_folder=places / "set")


def test_a_saved_data_set_by_name_is_checked(places):
    rows = [{"tokens": ["a"], "ner_tags": ["O"], "image": f"{places}/elsewhere/secret.png"}]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(places / "saved")
    with pytest.raises(ValueError, match=REFUSED):
        load_token_classification_dataset(str(places / "saved"))
    assert load_token_classification_dataset(str(places / "saved"), allow_outside_paths=True)["train"][0]["images"]


def test_a_link_that_changes_is_seen_although_the_rows_are_cached(places):
    file = write_row(places, "own.png")
    load_token_classification_dataset(train_file=file)
    (places / "set" / "own.png").unlink()
    (places / "set" / "own.png").symlink_to(places / "elsewhere" / "secret.png")
    with pytest.raises(ValueError, match=REFUSED):
        load_token_classification_dataset(train_file=file)


def test_pictures_that_stay_where_they_are_need_their_folder(places):
    write_jsonl(places / "elsewhere" / "metadata.jsonl", [{"image": "secret.png", "name": "a"}])
    texts = DatasetDict({"train": Dataset.from_list([{"tokens": ["a"], "ner_tags": ["O"]}])})
    pairs = write_jsonl(places / "elsewhere" / "pairs.jsonl", [{"row": 0, "image": "secret.png"}])
    save_paired_dataset(pair_by_manifest(texts, pairs), places / "saved", embed_images=False)
    with pytest.raises(ValueError, match=REFUSED):
        load_token_classification_dataset(str(places / "saved"))
    paired = load_token_classification_dataset(str(places / "saved"), image_folder=places / "elsewhere")
    assert paired["train"][0]["images"][0]["path"] == str(places / "elsewhere" / "secret.png")


@pytest.mark.parametrize("load", [load_caption_dataset, load_classification_dataset])
def test_other_loaders_take_the_same_flag(places, load):
    file = write_jsonl(places / "set" / "a.jsonl", [{"text": "a", "label": "b", "image": "link.png"}])
    with pytest.raises(ValueError, match=REFUSED):
        load(train_file=file)
    load(train_file=file, allow_outside_paths=True)


def test_streams_are_checked_row_by_row(places):
    rows = [{"text": "a", "image": "in.png"}, {"text": "b", "image": f"{places}/elsewhere/secret.png"}]
    rows.append({"text": "c", "image": f"file://{places}/set/in.png"})
    file = write_jsonl(places / "set" / "a.jsonl", rows)

    def read(**flags):
        return iter(open_caption_streams(CaptionDataArguments(train_file=str(file), **flags))["train"])

    stream = read()
    assert next(stream)["images"] == [{"bytes": None, "path": str(places / "set" / "in.png")}]
    with pytest.raises(ValueError, match=rf"train split \(.*\), row 1, field `image`: the image .*{REFUSED}"):
        next(stream)
    stream = read(image_folder=str(places))
    assert [next(stream)["captions"] for _ in range(2)] == [["a"], ["b"]]
    with pytest.raises(ValueError, match=rf"row 2, field `image`: the image 'file://.*{REFUSED}"):
        next(stream)
    stream = read(allow_outside_paths=True)
    assert [next(stream)["captions"] for _ in range(3)] == [["a"], ["b"], ["c"]]


def test_banks_and_manifests_are_checked(places):
    metadata = write_jsonl(places / "set" / "metadata.jsonl", [{"image": "link.png", "name": "a"}])
    with pytest.raises(ValueError, match=rf"metadata\.jsonl, line 1, field `image`: the image .*{REFUSED}"):
        ImageBank.from_folder(metadata.parent)
    assert len(ImageBank.from_folder(metadata.parent, allow_outside_paths=True)) == 1
    texts = DatasetDict({"train": Dataset.from_list([{"tokens": ["a"], "ner_tags": ["O"]}])})
    pairs = write_jsonl(places / "set" / "pairs.jsonl", [{"row": 0, "image": "../elsewhere/secret.png"}])
    with pytest.raises(ValueError, match=rf"pairs\.jsonl, line 1, field `image`: the image .*{REFUSED}"):
        pair_by_manifest(texts, pairs)
    assert pair_by_manifest(texts, pairs, allow_outside_paths=True)["train"][0]["images"]


def test_a_snapshot_of_the_hub_may_lead_to_its_own_blobs_alone(places, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(places / "hub"))
    for name in ("mine", "other"):
        (places / "hub" / name / "blobs").mkdir(parents=True)
        Pillow.new("RGB", (4, 4)).save(places / "hub" / name / "blobs" / "0a.png")
    snapshot = places / "hub" / "mine" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "own.png").symlink_to("../../blobs/0a.png")
    (snapshot / "other.png").symlink_to("../../../other/blobs/0a.png")
    folders = ImageFolders.of_file(str(snapshot))
    assert folders.outside([str(snapshot / "own.png"), str(snapshot / "other.png")]) == {str(snapshot / "other.png")}


def test_a_data_set_of_the_hub_may_name_its_own_files_alone():
    folders = ImageFolders.of_name("someone/set")
    own = ["hf://datasets/someone/set@1/a.png", "zip://a.png::hf://datasets/someone/set/b.zip"]
    others = [
        "hf://datasets/someone/settee/a.png",
        "hf://datasets/someone/set/../private/a.png",
        "hf://someone/model/a.png",
        "zip://a.png::https://example.org/b.zip",
        "/etc/passwd",
    ]
    assert folders.outside([*own, *others]) == set(others)


# What may come out of any value ----------------------------------------------------------------------------------------

names = st.text(st.characters(codec=None, categories=None), max_size=12)
parts = st.lists(st.sampled_from(["..", ".", "a", "set", "way_out", "link.png", "in.png", "~", "", "C:", "\\", "é"]))
paths = st.one_of(
    names,
    parts.map("/".join),
    parts.map(lambda names: "/" + "/".join(names)),
    st.builds("{}://{}".format, st.sampled_from(["file", "http", "HTTPS", "zip", "hf", "zip://x::file"]), names),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=4), paths),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.fixed_dictionaries({}, optional={"bytes": inner, "path": inner, "other": inner}),
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    (root / "set").mkdir()
    for name in ("secret.png", "set/in.png"):
        Pillow.new("RGB", (1, 1)).save(root / name)
    (root / "set" / "link.png").symlink_to(root / "secret.png")
    (root / "set" / "way_out").symlink_to(root)
    return root / "set"


@given(value=values)
@example(value="a\0b")
@example(value="\ud800.png")
@example(value={"bytes": None, "path": "way_out/secret.png"})
def test_an_item_is_an_image_none_or_an_error_that_names_its_place(world, value):
    try:
        item = image_item(value, str(world), "file, row 7, field `image`")
    except ValueError as error:
        assert str(error).startswith("file, row 7, field `image`: ") and len(str(error)) < 400
        return
    if item is None:
        assert value in (None, "") or value.get("path") in (None, "")
        return
    assert set(item) == {"bytes", "path"}
    if item["bytes"] is not None:
        assert item["bytes"] == (value["bytes"] if isinstance(value, dict) else value)
        return
    folders = ImageFolders.of_file(str(world))
    if not folders.outside([item["path"]]) and "://" not in item["path"]:
        assert os.path.realpath(item["path"]).startswith(f"{Path(world).resolve()}{os.sep}")
