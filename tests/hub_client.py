"""
Run by `test_hub.py` in processes of its own, in which the Hub's address is set before anything is imported: one step of
what people do with a Hub. Prints what came of it as JSON on the last line.

    python hub_client.py STEP '{"argument": "value"}'

Only the steps of the owner can import `vtfusion`; everybody else has plain `transformers`.
"""

import json
import sys
import tempfile
from pathlib import Path

MARK = "code of another revision"


def make_processor():
    from transformers import ViTImageProcessor

    from tokenizers_for_tests import bert
    from vtfusion import VTFusionProcessor

    return VTFusionProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), bert())


def encode(processor, **labels):
    """Two texts as a stranger would encode them, one of them without a picture."""
    from PIL import Image

    images = [Image.new("RGB", (40, 30), "red"), None]
    return processor(text=[["the", "fox"], ["john", "smith"]], images=images, return_tensors="pt", **labels)


def predictions(model, processor=None):
    import torch
    from run_folder import inputs_for

    model.eval()
    with torch.no_grad():
        logits = {"logits": model(**inputs_for(model)).logits.tolist()}
        if processor is not None:
            logits["answer"] = model(**encode(processor)).logits.tolist()
    return logits


def owner_publishes(repository, private, sharded):
    """
    Two versions of a model with its processor, of which the first has the tag `v1` and a branch `marked` has code of its
    own; one in a private repository; one in shards.
    """
    from huggingface_hub import HfApi

    import vtfusion.modeling_vtfusion as code
    from heads import make_head

    api = HfApi()
    first, second = (
        make_head("token", vision="resnet", seed=seed, id2label={0: "O", 1: "B-PER", 2: "I-PER"}) for seed in (0, 1)
    )
    processor = make_processor()
    first.push_to_hub(repository)
    processor.push_to_hub(repository)
    api.create_tag(repository, tag="v1")
    commit = second.push_to_hub(repository)
    api.create_branch(repository, branch="marked")
    api.upload_file(
        path_or_fileobj=Path(code.__file__).read_bytes() + f"MARK = {MARK!r}\n".encode(),
        path_in_repo="modeling_vtfusion.py",
        repo_id=repository,
        revision="marked",
    )
    first.push_to_hub(private, private=True)
    processor.push_to_hub(private)
    first.push_to_hub(sharded, max_shard_size="100KB")
    return {"v1": predictions(first, processor), "main": predictions(second, processor), "commit": commit.oid}


def load_one(repository, with_processor=True, **options):
    from transformers import AutoModelForTokenClassification, AutoProcessor

    options["trust_remote_code"] = True
    model, info = AutoModelForTokenClassification.from_pretrained(repository, output_loading_info=True, **options)
    processor = AutoProcessor.from_pretrained(repository, **options) if with_processor else None
    return {
        "modules": sorted({type(part).__module__ for part in (model, model.config, processor) if part is not None}),
        "missing": sorted(info["missing_keys"]),
        "mark": getattr(sys.modules[type(model).__module__], "MARK", None),
        "labels": list(model.config.id2label.values()),
        **predictions(model, processor),
    }


def use_pipeline(repository, data):
    """Every word with its label, from examples in every form; `data` is a data set with a split `test`."""
    from datasets import load_dataset
    from PIL import Image
    from transformers import pipeline

    pipe = pipeline(model=repository, trust_remote_code=True, aggregation_strategy="none")
    rows = load_dataset(data, split="test")
    picture = Image.new("RGB", (40, 30), "red")
    return {
        "module": type(pipe).__module__,
        "picture": pipe("John sings", images=picture),
        "none": pipe("John sings", images=None),
        "long": pipe(" ".join(["John", "sings", "here"] * 1000), images=picture),
        "batch": pipe([{"text": "John sings", "image": picture}, "John sings"] * 32, batch_size=64),
        "rows": list(pipe(rows, batch_size=8)),
        "column": list(pipe(rows["tokens"])),
    }


def load(*loads):
    results = []
    for options in loads:
        try:
            results.append(load_one(**options))
        except OSError as error:
            chain = [error]
            while cause := chain[-1].__cause__ or chain[-1].__context__:
                chain.append(cause)
            results.append({"errors": [type(each).__name__ for each in chain], "message": str(error)})
    return results


def fine_tune(repository, to):
    """A few steps with the plain `Trainer`; pushes what came of it."""
    from transformers import AutoModelForTokenClassification, AutoProcessor, Trainer, TrainingArguments

    model = AutoModelForTokenClassification.from_pretrained(repository, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    before = predictions(model, processor)
    batch = encode(processor, word_labels=[[0, 0], [1, 2]])
    names = ("input_ids", "attention_mask", "pixel_values", "image_mask", "labels")
    rows = [{name: batch[name][row] for name in names} for row in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=4,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            remove_unused_columns=False,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()
    model.push_to_hub(to)
    processor.push_to_hub(to)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"before": before, "after": predictions(model, processor), "losses": losses}


def share_data(**folders):
    """Data sets that lie on this disk, each into the repository of its name."""
    from datasets import load_from_disk

    for name, folder in folders.items():
        load_from_disk(folder).push_to_hub(f"owner/{name}")


def describe(row):
    import numpy as np

    pixels = None if row["image"] is None else np.asarray(row["image"]).tolist()
    return {**row, "image": pixels}


def read_data(repository):
    from datasets import load_dataset

    rows = load_dataset(repository, split="train")
    stream = load_dataset(repository, split="train", streaming=True)
    return {
        "tags": rows.features["ner_tags"].feature.names,
        "rows": [describe(row) for row in rows],
        "streamed": [describe(row) for row in stream],
    }


def commit(repository, folder):
    """A Space: its folder is uploaded, changed, and changed once more by somebody who has not seen the first change."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    space = {"repo_id": repository, "repo_type": "space"}
    api.create_repo(**space, space_sdk="static")
    parent = api.upload_folder(**space, folder_path=folder).oid
    operations = [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("old/")]
    api.create_commit(**space, operations=operations, commit_message="first", parent_commit=parent)
    late = [CommitOperationAdd("new.txt", b"late")]
    try:
        api.create_commit(**space, operations=late, commit_message="second", parent_commit=parent)
    except HfHubHTTPError as error:
        conflict = {"status": error.response.status_code, "message": str(error)}
    return {"conflict": conflict, "files": api.list_repo_files(**space)}


def upload_and_download(repository, file):
    from huggingface_hub import HfApi, hf_hub_download

    HfApi().create_repo(repository)
    HfApi().upload_file(repo_id=repository, path_or_fileobj=file, path_in_repo="data.bin")
    return Path(hf_hub_download(repository, "data.bin")).read_bytes() == Path(file).read_bytes()


def upload(repository, folder):
    from huggingface_hub import HfApi

    HfApi().create_repo(repository, exist_ok=True)
    try:
        HfApi().upload_folder(repo_id=repository, folder_path=folder)
    except RuntimeError as error:
        return str(error)
    return "whole"


STEPS = {
    "owner_publishes": owner_publishes,
    "load": load,
    "use_pipeline": use_pipeline,
    "fine_tune": fine_tune,
    "share_data": share_data,
    "read_data": read_data,
    "commit": commit,
    "upload_and_download": upload_and_download,
    "upload": upload,
}


def main(step, arguments):
    sys.path.insert(0, str(Path(__file__).resolve().parent / "remote_code"))
    from run_folder import Blocker

    if not step.startswith("owner"):
        sys.meta_path.insert(0, Blocker())
    arguments = json.loads(arguments)
    result = STEPS[step](**arguments) if isinstance(arguments, dict) else STEPS[step](*arguments)
    if not step.startswith("owner") and "vtfusion" in sys.modules:
        raise AssertionError("vtfusion was imported, so this shows nothing")
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
