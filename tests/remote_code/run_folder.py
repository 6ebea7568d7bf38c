"""
Run by `test_remote_code.py` in a process of its own: loads a saved folder as a stranger would, who has never installed
`vtfusion`, and prints what came of it as JSON on the last line.

    python run_folder.py FOLDER [SAVE_TO]
"""

import json
import sys


class Blocker:
    """An import hook that knows no `vtfusion`, whatever is installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "vtfusion":
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)
        return None


def inputs_for(model, texts=()):
    """Two rows, of which one has an image; `texts` as in `heads.Head`."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (2, *texts, 6)
    inputs = {
        "input_ids": torch.randint(3, 30, shape, generator=generator),
        "attention_mask": torch.ones(shape, dtype=torch.long),
    }
    inputs["attention_mask"][1, ..., 4:] = 0
    if model.config.vision_config is None:
        inputs["visual_embeds"] = torch.randn(2, 5, model.config.visual_hidden_size, generator=generator)
    else:
        inputs["pixel_values"] = torch.randn(2, 3, 32, 32, generator=generator)
        inputs["image_mask"] = torch.tensor([[1], [0]])
    return inputs


def main(folder, save_to=None):
    sys.meta_path.insert(0, Blocker())
    try:
        import vtfusion  # noqa: F401
    except ModuleNotFoundError:
        pass
    else:
        raise AssertionError("vtfusion is importable, so this shows nothing")

    import torch
    from PIL import Image
    from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, AutoProcessor

    trust = {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(folder, **trust)
    model, info = AutoModelForTokenClassification.from_pretrained(folder, output_loading_info=True, **trust)
    base, base_info = AutoModel.from_pretrained(folder, output_loading_info=True, **trust)
    processor = AutoProcessor.from_pretrained(folder, **trust)

    batch = processor(
        text=[["the", "fox"], ["john", "smith"]],
        images=[Image.new("RGB", (40, 30), "red"), None],
        return_tensors="pt",
    )
    if model.config.vision_config is None:
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = model(**inputs_for(model)).logits
        hidden = base(**inputs_for(base)).last_hidden_state
        answer = model(**batch).logits
    if save_to is not None:
        model.save_pretrained(save_to)
        processor.save_pretrained(save_to)
    result = {
        "modules": sorted({type(part).__module__ for part in (config, model, base, processor)}),
        "classes": [type(part).__name__ for part in (config, model, base, processor)],
        "missing": sorted(info["missing_keys"]),
        "base_missing": sorted(base_info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "logits": logits.tolist(),
        "hidden": hidden.tolist(),
        "answer": answer.tolist(),
        "labels": list(config.id2label.values()),
        "vtfusion_loaded": "vtfusion" in sys.modules,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
