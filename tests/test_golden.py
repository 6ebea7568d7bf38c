"""
Outputs of every head, the base model and the generation model against stored ones, so that no version changes them
unnoticed. A change that is meant is stored by `make golden`, see CONTRIBUTING.md.
"""

import pytest
import torch

from golden_outputs import FILE, MODELS, compute, differences, make_model, stored_outputs


def of(name: str, condition: str = "") -> dict[str, list[float]]:
    return {key: value for key, value in stored_outputs().items() if key.startswith(f"{name} {condition}")}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_the_stored_ones(name):
    torch.manual_seed(len(name))  # weights and inputs come from no generator
    assert differences(of(name), compute(name, make_model(name))) == []


def test_nothing_else_is_stored():
    assert {key.split()[0] for key in stored_outputs()} == set(MODELS)
    assert FILE.stat().st_size < 20_000


@pytest.mark.parametrize("name", MODELS)
def test_a_small_change_is_noticed(name):
    """A thousandth more in the first temperature, or in one number of a module."""
    model = make_model(name)
    parameters = dict(model.named_parameters())
    scale = next(key for key in parameters if key.endswith("log_scale") and "contrastive" not in key)
    # one matrix for each module of its own: fusion, projections and head
    own = {}
    for key, value in parameters.items():
        module = key.removeprefix("vtfusion.").split(".")[0]
        if value.dim() > 1 and module not in ("text_model", "vision_model", "resampler"):
            own.setdefault(module, key)
    assert len(own) > 3
    for key in (scale, *own.values()):
        with torch.no_grad():
            place = parameters[key].view(-1)[:1]
            place.add_(1e-3)
            found = compute(name, model, ["images"])
            place.sub_(1e-3)
        assert differences(of(name, "images"), found) != [], key
