"""
Run by `test_heads_remote_code.py` in a process of its own, where there is no `vtfusion`: loads saved folders, each by
an Auto class, and prints what came of it as JSON on the last line.

    python run_heads.py '[["FOLDER", "AutoModelForMaskedLM", []], ...]' [SAVE_TO]

Behind the Auto class stands how many texts a row has, as in `heads.Head`.
"""

import json
import sys
from pathlib import Path

from run_folder import Blocker, inputs_for


def predictions(model, texts=()):
    import torch

    with torch.no_grad():
        outputs = model.eval()(**inputs_for(model, texts))
    values = {name: value for name, value in outputs.items() if "logits" in name}
    return {name: value.tolist() for name, value in {**values, "hidden": outputs.last_hidden_state}.items()}


def main(folders, save_to=None):
    sys.meta_path.insert(0, Blocker())
    import transformers

    results = []
    for folder, auto_class, texts in json.loads(folders):
        model, info = getattr(transformers, auto_class).from_pretrained(
            folder, trust_remote_code=True, output_loading_info=True
        )
        if save_to is not None:
            model.save_pretrained(Path(save_to) / Path(folder).name)
        results.append(
            {
                "class": type(model).__name__,
                "modules": sorted({type(part).__module__ for part in (model, model.config)}),
                "missing": sorted({name.split(".")[0] for name in info["missing_keys"]}),
                "unexpected": sorted({name.split(".")[0] for name in info["unexpected_keys"]}),
                "tied": hasattr(model, "lm_head")
                and model.lm_head.decoder.weight is model.get_input_embeddings().weight,
                "predictions": predictions(model, texts),
            }
        )
    if "vtfusion" in sys.modules:
        raise AssertionError("vtfusion was imported, so this shows nothing")
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
