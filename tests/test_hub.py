"""
What people do with a Hub, by the genuine clients against a Hub of our own ([`hub_server`]): a model is pushed with its
code, and strangers who have never installed `vtfusion` load, train and push it again.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from huggingface_hub import ModelCard
from packaging import version
from transformers import pipeline

from hub_client import MARK, encode
from hub_server import HubServer, running_hub
from vtfusion import VTFusionForTokenClassification, VTFusionProcessor
from vtfusion.training.sample_data import build_sample_dataset, build_tiny_encoders

ROOT = Path(__file__).resolve().parents[1]
CODE = {path.name for path in ROOT.glob("*_vtfusion.py")}
PROCESSOR = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
CARD = {"README.md", ".gitattributes"}
FOLDER = CODE | PROCESSOR | CARD | {"config.json", "model.safetensors"}
LABELS = ["O", "B-PER", "I-PER"]
OLD_TRANSFORMERS = version.parse(transformers.__version__) < version.parse("5.1")

NER, PRIVATE, SHARDED = "owner/ner", "owner/private", "owner/sharded"
TUNED, TRAINED, REPUSHED = "guest/tuned", "owner/trained", "owner/repushed"


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[HubServer]:
    users = {"token-of-owner": "owner", "token-of-guest": "guest"}
    with running_hub(tmp_path_factory.mktemp("hub"), users, page_size=5) as server:
        yield server


def environment(hub: HubServer, home: Path, user: str | None = None, offline: bool = False) -> dict[str, str]:
    """For a process that knows no Hub but ours, with a cache of its own in `home`."""
    others = ("HF_", "HUGGING", "PYTHONPATH")  # another token, another cache, another place of `vtfusion`
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    home.mkdir(exist_ok=True)
    return {
        **kept,
        **({} if user is None else {"HF_TOKEN": f"token-of-{user}"}),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "60",  # a slow machine is not a Hub that is down
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
        "OMP_NUM_THREADS": "1",
    }


def run(command: list[str], home: Path, env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def client(
    hub: HubServer, home: Path, step: str, arguments: Any, user: str | None = None, offline: bool = False
) -> Any:
    """A step of `hub_client.py`, with or without a user's token."""
    command = [sys.executable, str(Path(__file__).with_name("hub_client.py")), step, json.dumps(arguments)]
    return json.loads(run(command, home, environment(hub, home, user, offline)).splitlines()[-1])


@pytest.fixture(scope="module")
def published(hub, tmp_path_factory) -> dict[str, Any]:
    """What the owner's models predict, by revision."""
    names = {"repository": NER, "private": PRIVATE, "sharded": SHARDED}
    return client(hub, tmp_path_factory.mktemp("owner"), "owner_publishes", names, "owner")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The stranger's, empty at first."""
    return tmp_path_factory.mktemp("stranger")


LOADS: dict[str, dict[str, Any]] = {
    "main": {"repository": NER},
    "tag": {"repository": NER, "revision": "v1"},
    "commit": {"repository": NER},
    "branch": {"repository": NER, "revision": "marked"},
    "code of the branch": {"repository": NER, "revision": "v1", "code_revision": "marked"},
    "shards": {"repository": SHARDED, "with_processor": False},
    "private, no token": {"repository": PRIVATE},
    "private, another user": {"repository": PRIVATE, "token": "token-of-guest"},
    "private, the owner": {"repository": PRIVATE, "token": "token-of-owner"},
}


@pytest.fixture(scope="module")
def loaded(hub, published, home) -> dict[str, dict[str, Any]]:
    """What a stranger gets, who has no token unless he gives one."""
    loads = {**LOADS, "commit": {"repository": NER, "revision": published["commit"]}}
    return dict(zip(loads, client(hub, home, "load", list(loads.values())), strict=True))


def assert_same(
    result: dict[str, Any], expected: dict[str, Any], names: tuple[str, ...] = ("logits", "answer")
) -> None:
    for name in names:
        torch.testing.assert_close(torch.tensor(result[name]), torch.tensor(expected[name]), rtol=1e-5, atol=1e-6)


def assert_whole(files: dict[str, bytes]) -> None:
    """What a model needs and no more, the code as it is here, and nothing that leads to another place or machine."""
    assert set(files) == FOLDER
    for name, content in files.items():
        if name in CODE:
            assert content == (ROOT / name).read_bytes(), name
        for place in (tempfile.gettempdir(), Path.home()):
            assert f"{place}/".encode() not in content, name
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        assert b"--" not in files[name], name


@pytest.mark.parametrize("repository", [NER, PRIVATE])
def test_pushed_repository_holds_code_config_weights_processor_and_card(hub, published, repository):
    assert_whole(hub.files(repository))


@pytest.mark.parametrize(
    ("load", "version"), [("main", "main"), ("tag", "v1"), ("commit", "main"), ("branch", "main"), ("shards", "v1")]
)
def test_stranger_gets_the_owners_predictions(published, loaded, load, version):
    result = loaded[load]
    assert result["missing"] == [] and result["labels"] == LABELS
    assert all(module.startswith("transformers_modules.owner.") for module in result["modules"])
    assert result["mark"] == (MARK if load == "branch" else None)
    assert_same(result, published[version], ("logits",) if load == "shards" else ("logits", "answer"))


def test_two_versions_differ(published):
    assert not torch.allclose(torch.tensor(published["v1"]["logits"]), torch.tensor(published["main"]["logits"]))


def test_code_of_one_revision_with_weights_of_another(published, loaded):
    result = loaded["code of the branch"]
    assert result["mark"] == MARK
    assert_same(result, published["v1"])


def test_sharded_weights(hub, published):
    files = hub.files(SHARDED)
    shards = {name for name in files if name.endswith(".safetensors")}
    assert len(shards) > 1
    assert set(files) == CODE - {
        "processing_vtfusion.py",
        "postprocessing_vtfusion.py",
        "images_vtfusion.py",
        "prompts_vtfusion.py",
        "words_vtfusion.py",
    } | CARD | shards | {
        "config.json",
        "model.safetensors.index.json",
    }
    assert set(json.loads(files["model.safetensors.index.json"])["weight_map"].values()) == shards


@pytest.mark.parametrize("who", ["no token", "another user"])
def test_private_repository_is_not_found_without_its_owners_token(loaded, who):
    result = loaded[f"private, {who}"]
    assert result["errors"][0] == "OSError" and "RepositoryNotFoundError" in result["errors"]
    assert "make sure to pass a token having permission to this repo" in result["message"]


@pytest.mark.skipif(
    OLD_TRANSFORMERS,
    reason="this transformers loses a token that is given on the way to the code",
)
def test_private_repository_loads_with_a_token_that_is_given(published, loaded):
    assert_same(loaded["private, the owner"], published["v1"])


def test_private_repository_loads_for_its_owner(hub, published, tmp_path):
    (result,) = client(hub, tmp_path, "load", [{"repository": PRIVATE}], "owner")
    assert_same(result, published["v1"])


def test_cache_serves_offline(hub, published, loaded, home):
    asked = len(hub.requests)
    names = ["main", "tag"]
    results = client(hub, home, "load", [LOADS[name] for name in names], offline=True)
    assert hub.requests[asked:] == []
    for name, result in zip(names, results, strict=True):
        assert_same(result, loaded[name])


def test_stranger_fine_tunes_and_pushes_what_the_next_stranger_loads(hub, published, loaded, home, tmp_path):
    tuned = client(hub, home, "fine_tune", {"repository": NER, "to": TUNED}, "guest")
    assert_same(tuned["before"], published["main"])
    assert tuned["losses"][-1] < tuned["losses"][0]
    assert_whole(hub.files(TUNED))

    asked = len(hub.requests)
    (result,) = client(hub, tmp_path, "load", [{"repository": TUNED}])
    assert all(module.startswith("transformers_modules.guest.") for module in result["modules"])
    assert not [request.path for request in hub.requests[asked:] if "owner/" in request.path]
    assert_same(result, tuned["after"])


def test_late_commit_is_refused(hub, tmp_path):
    folder = tmp_path / "folder"
    (folder / "old").mkdir(parents=True)
    for name in ("index.html", "old/one.txt", "old/two.txt"):
        (folder / name).write_text(name)
    result = client(hub, tmp_path, "commit", {"repository": "owner/space", "folder": str(folder)}, "owner")
    assert result["conflict"]["status"] == 412 and "A commit has happened since" in result["conflict"]["message"]
    assert sorted(result["files"]) == [".gitattributes", "index.html", "new.txt"]
    space = hub.repositories["space", "owner/space"]
    commits = [space.at("main")]
    while commits[-1].parent is not None:
        commits.append(space.at(commits[-1].parent))
    assert [each.title for each in commits] == ["first", "Upload folder using huggingface_hub", "initial commit"]
    assert hub.files("owner/space", kind="space")["new.txt"] == b"new"


@pytest.mark.skipif(
    version.parse(huggingface_hub.__version__) < version.parse("1.20"),
    reason="this huggingface_hub does not take a connection that broke off for a reason to try again",
)
def test_interrupted_download_goes_on_where_it_broke_off(hub, tmp_path):
    megabyte = 1024 * 1024  # the client writes ten of them at a time
    content = bytes(range(256)) * (12 * megabyte // 256)
    (tmp_path / "data.bin").write_bytes(content)
    hub.interruptions[hashlib.sha256(content).hexdigest()] = 11 * megabyte
    names = {"repository": "owner/large", "file": str(tmp_path / "data.bin")}
    asked = len(hub.requests)
    assert client(hub, tmp_path, "upload_and_download", names, "owner")
    downloads = [each for each in hub.requests[asked:] if each.method == "GET" and each.path.startswith("/lfs/")]
    assert [(each.status, each.range) for each in downloads] == [(200, None), (206, f"bytes={10 * megabyte}-")]
    assert {each.user for each in downloads} == {None}  # the token stays with the Hub


def test_interrupted_upload_goes_on_with_the_files_that_are_missing(hub, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    contents = {f"{name}.bin": name.encode() * 100 for name in ("one", "two", "three")}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    paths = {name: f"/lfs/{hashlib.sha256(content).hexdigest()}" for name, content in contents.items()}
    hub.refusals.add(paths["two.bin"].removeprefix("/lfs/"))

    names = {"repository": "owner/parts", "folder": str(folder)}
    assert "two.bin" in client(hub, tmp_path, "upload", names, "owner")
    arrived = {name for name, path in paths.items() if (hub.folder / path.removeprefix("/lfs/")).exists()}
    assert arrived == {"one.bin", "three.bin"}
    assert set(hub.files("owner/parts")) == {".gitattributes"}  # no commit without all of its files
    asked = len(hub.requests)
    assert client(hub, tmp_path, "upload", names, "owner") == "whole"
    uploads = [(each.path, each.status) for each in hub.requests[asked:] if each.method == "PUT"]
    assert uploads == [(paths["two.bin"], 200)]
    assert {name: hub.files("owner/parts")[name] for name in contents} == contents


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray | None]:
    values = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    return [values[0], None, values[1]]


@pytest.fixture(scope="module")
def shared(hub, pictures, tmp_path_factory) -> Path:
    """The folder of tiny encoders for the data set `owner/sample`; beside it on the Hub is `owner/paired`."""
    folder = tmp_path_factory.mktemp("data")
    columns = {
        "tokens": [["John", "sings"], ["Nobody", "does"], ["Here", "is", "John"]],
        "ner_tags": [[1, 0], [0, 0], [0, 0, 1]],
        "image": [None if values is None else PIL.Image.fromarray(values) for values in pictures],
    }
    types = {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=LABELS)), "image": Image()}
    Dataset.from_dict(columns, features=Features(types)).save_to_disk(str(folder / "paired"))
    sample = build_sample_dataset(num_train=16, num_validation=8, num_test=8, image_size=32)
    sample.save_to_disk(str(folder / "sample"))
    build_tiny_encoders(folder, sample, image_size=32)
    folders = {name: str(folder / name) for name in ("paired", "sample")}
    client(hub, folder / "home", "share_data", folders, "owner")
    return folder


def test_paired_data_set_comes_back_whole_and_as_a_stream(hub, shared, pictures, tmp_path):
    result = client(hub, tmp_path, "read_data", {"repository": "owner/paired"})
    assert result["tags"] == LABELS
    for rows in (result["rows"], result["streamed"]):
        assert [row["tokens"] for row in rows] == [["John", "sings"], ["Nobody", "does"], ["Here", "is", "John"]]
        assert [row["ner_tags"] for row in rows] == [[1, 0], [0, 0], [0, 0, 1]]
        for row, expected in zip(rows, pictures, strict=True):
            assert row["image"] == (None if expected is None else expected.tolist())


@pytest.fixture(scope="module")
def trained(hub, shared, tmp_path_factory) -> Path:
    """The folder of a run of the NER script on the data set of the Hub, which pushed it to `owner/trained`."""
    output = tmp_path_factory.mktemp("run")
    command = [sys.executable, str(ROOT / "scripts" / "run_ner.py"), "--dataset_name", "owner/sample"]
    command += ["--text_model", str(shared / "text"), "--vision_model", str(shared / "vision")]
    command += ["--fusion_hidden_size", "16", "--num_train_epochs", "1", "--output_dir", str(output)]
    command += ["--push_to_hub", "--hub_model_id", TRAINED, "--use_cpu", "True"]
    run(command, output, environment(hub, shared / "home", "owner"))
    return output


def test_script_pushes_the_finished_model_once_and_nothing_else_of_its_folder(hub, trained):
    assert {path.name for path in trained.iterdir()} > FOLDER - {".gitattributes"}  # there is more to leave out
    files = hub.files(TRAINED)
    assert_whole(files)
    repository = hub.repositories["model", TRAINED]
    assert [each.title for each in repository.commits.values()] == ["initial commit", "End of training"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "token-classification" and f'pipeline(model="{TRAINED}"' in card.text


def assert_words(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same words with the same labels, and the same numbers as far as another batch allows."""
    assert len(found) == len(expected)
    for word, other in zip(found, expected, strict=True):
        close = {name: pytest.approx(other[name], abs=1e-4) for name in ("score", "gate")}
        assert word == {**other, **close}


def test_stranger_uses_what_the_script_pushed(hub, trained, tmp_path):
    (result,) = client(hub, tmp_path, "load", [{"repository": TRAINED}])
    assert result["missing"] == [] and len(result["labels"]) == 9
    model = VTFusionForTokenClassification.from_pretrained(trained).eval()
    processor = VTFusionProcessor.from_pretrained(trained)
    with torch.no_grad():
        answer = model(**encode(processor)).logits.tolist()
    assert_same(result, {"answer": answer}, ("answer",))


def test_pipeline_of_a_stranger_says_what_the_script_predicted(hub, shared, trained, tmp_path):
    result = client(hub, tmp_path, "use_pipeline", {"repository": TRAINED, "data": "owner/sample"})
    assert result["module"].startswith("transformers_modules.owner.")
    lines = (trained / "test_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for name, field in (("rows", "predicted_tags"), ("column", "predicted_tags_none")):
        assert [[word["entity"] for word in words] for words in result[name]] == [record[field] for record in records]

    model = VTFusionForTokenClassification.from_pretrained(trained).eval()
    processor = VTFusionProcessor.from_pretrained(trained)
    here = pipeline("multimodal-token-classification", model=model, processor=processor, aggregation_strategy="none")
    picture = PIL.Image.new("RGB", (40, 30), "red")
    expected = [here("John sings", images=picture), here("John sings")]
    assert [word["word"] for word in expected[0]] == ["John", "sings"] and expected[0][0]["gate"] > 0
    assert_words(result["picture"], expected[0])
    assert_words(result["none"], expected[1])
    for words, other in zip(result["batch"], expected * 32, strict=True):
        assert_words(words, other)
    assert [word["word"] for word in result["long"]] == ["John", "sings", "here"] * 1000


def test_command_pushes_the_same_from_the_folder(hub, trained, tmp_path):
    command = [sys.executable, "-m", "vtfusion.app.cli", "push", str(trained), REPUSHED, "--private"]
    printed = run(command, tmp_path, environment(hub, tmp_path / "home", "owner"))
    repository = hub.repositories["model", REPUSHED]
    assert repository.private and printed.strip().endswith(f"/{REPUSHED}/commit/{repository.at('main').oid}")
    pushed, before = hub.files(REPUSHED), hub.files(TRAINED)
    assert_whole(pushed)
    assert f'pipeline(model="{REPUSHED}"' in pushed["README.md"].decode()
    config = json.loads(before["config.json"])
    config.pop("use_cache", None)  # what Trainer leaves there, and no model of ours reads
    assert json.loads(pushed["config.json"]) == config
    rest = FOLDER - {"README.md", "config.json"}
    if OLD_TRANSFORMERS:  # it saves what it has loaded under older names: LayerNorm.gamma for LayerNorm.weight
        rest -= {"model.safetensors", "tokenizer_config.json"}
    assert [name for name in rest if pushed[name] != before[name]] == []
