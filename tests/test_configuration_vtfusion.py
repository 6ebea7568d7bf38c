"""The configuration: what it accepts, what it refuses, and what survives a folder."""

import json
import math

import pytest
from transformers import AutoConfig, BertConfig, ResNetConfig, ViTConfig

from heads import AUTO_MAP
from tiny import TEXT, VISION, tiny_config
from vtfusion import VTFusionConfig


def test_defaults():
    config = VTFusionConfig()
    assert isinstance(config.text_config, BertConfig) and isinstance(config.vision_config, ViTConfig)
    assert config.fusion_intermediate_size == 2 * config.fusion_hidden_size == 512
    assert (config.num_fusion_layers, config.num_fusion_heads) == (1, 4)
    assert config.visual_hidden_size is None and config.vision_num_prefix_tokens is None
    assert config.get_text_config() is config.text_config


def test_sub_configs_as_dicts():
    config = VTFusionConfig(
        text_config={"model_type": "bert", "hidden_size": 48}, vision_config={"model_type": "resnet", "depths": [1, 1]}
    )
    assert isinstance(config.text_config, BertConfig) and config.text_config.hidden_size == 48
    assert isinstance(config.vision_config, ResNetConfig) and config.vision_config.depths == [1, 1]


def test_given_dict_is_left_as_it_was():
    given = {"model_type": "bert", "hidden_size": 48}
    VTFusionConfig(text_config=given)
    assert given == {"model_type": "bert", "hidden_size": 48}


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_dict_without_model_type_raises(part):
    with pytest.raises(ValueError, match=f"`{part}` was given as a dict without `model_type`"):
        VTFusionConfig(**{part: {"hidden_size": 48}})


def test_unknown_model_type_raises():
    with pytest.raises(ValueError, match="no-such-model"):
        VTFusionConfig(text_config={"model_type": "no-such-model"})


COUNTS = [
    *("fusion_hidden_size", "fusion_intermediate_size", "num_fusion_layers", "num_fusion_heads"),
    *("visual_hidden_size", "vision_num_prefix_tokens", "cross_attention_every", "num_resampler_tokens"),
]
NUMBERS = [
    *("temperature_init", "fusion_dropout", "classifier_dropout", "image_dropout", "label_smoothing"),
    *("fusion_loss_weight", "text_loss_weight", "vision_loss_weight", "contrastive_loss_weight"),
    *("matching_loss_weight", "initializer_range"),
]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_fusion_layers": 0}, "`num_fusion_layers` must be at least 1, got 0"),
        ({"fusion_hidden_size": 30, "num_fusion_heads": 4}, r"multiple of `num_fusion_heads` \(4\)"),
        ({"num_fusion_heads": 0}, "`num_fusion_heads` must be at least 1, got 0"),
        ({"cross_attention_every": 0}, "`cross_attention_every` must be at least 1, got 0"),
        ({"num_resampler_tokens": -1}, "`num_resampler_tokens` must not be negative, got -1"),
        ({"temperature_init": 0.0}, "`temperature_init` must be from 0.01 to 100, got 0.0"),
        # outside of its bounds it would never be learned
        ({"temperature_init": 0.005}, "`temperature_init` must be from 0.01 to 100"),
        ({"temperature_init": 150.0}, "`temperature_init` must be from 0.01 to 100"),
        ({"image_dropout": 1.0}, "`image_dropout` must be at least 0 and below 1, got 1.0"),
        ({"image_dropout": -0.1}, "`image_dropout` must be at least 0"),
        ({"fusion_loss_weight": -0.1}, "`fusion_loss_weight` must be finite and must not be negative, got -0.1"),
        ({"text_loss_weight": -0.1}, "`text_loss_weight` must be finite and must not be negative"),
        ({"vision_loss_weight": -0.1}, "`vision_loss_weight` must be finite and must not be negative"),
        ({"contrastive_loss_weight": -0.1}, "`contrastive_loss_weight` must be finite and must not be negative"),
        ({"matching_loss_weight": -0.1}, "`matching_loss_weight` must be finite and must not be negative"),
        ({"pooling": "max"}, "`pooling` must be 'mean', 'first' or 'last', got 'max'"),
        ({"pooling": None}, "`pooling` must be .* got None"),
        ({"label_smoothing": 1.0}, "`label_smoothing` must be at least 0 and below 1, got 1.0"),
        ({"label_smoothing": -0.1}, "`label_smoothing` must be at least 0"),
        *(({name: 1.5}, f"`{name}` must be a whole number, got 1.5") for name in COUNTS),
        *(({name: "3"}, f"`{name}` must be a whole number, got '3'") for name in COUNTS),
        *(({name: -1}, f"`{name}` must (be at least 1|not be negative), got -1") for name in COUNTS),
        *(
            ({name: value}, f"`{name}` must .* got {value!r}")
            for name in NUMBERS
            for value in (math.nan, math.inf, -math.inf, -0.1, "0.1", None, True)
        ),
        ({"num_fusion_layers": True}, "`num_fusion_layers` must be a whole number, got True"),
        ({"fusion_hidden_size": 0}, "`fusion_hidden_size` must be at least 1, got 0"),
        ({"fusion_dropout": 1.0}, "`fusion_dropout` must be at least 0 and below 1, got 1.0"),
        ({"classifier_dropout": 1.0}, "`classifier_dropout` must be at least 0 and below 1"),
        ({"fusion_hidden_act": "no-such"}, "`fusion_hidden_act` must be one of .*gelu.*, got 'no-such'"),
        ({"text_config": "bert"}, "`text_config` must be a `PreTrainedConfig` or a dict, got 'bert'"),
        ({"vision_config": [1]}, r"`vision_config` must be a `PreTrainedConfig` or a dict, got \[1\]"),
        ({"vision_config": {"model_type": "no-such"}}, "`vision_config` has the `model_type` 'no-such', which"),
        ({"text_config": {"model_type": ["bert"]}}, r"`text_config` has the `model_type` \['bert'\]"),
        ({"class_weights": [1.0, math.nan]}, r"`class_weights` must be finite numbers .* got \[1.0, nan\]"),
        ({"class_weights": [1.0, -1.0]}, "`class_weights` must be finite numbers that are not negative"),
        ({"class_weights": ["a", 1.0]}, "`class_weights` must be finite numbers"),
        ({"class_weights": "ab"}, "`class_weights` must be finite numbers"),
        ({"class_weights": [1.0, 2.0, 3.0]}, "`class_weights` has 3 numbers for 2 labels"),
        ({"class_weights": [1.0, 2.0], "num_labels": 3}, "`class_weights` has 2 numbers for 3 labels"),
        ({"class_weights": [1.0], "id2label": {0: "no", 1: "yes"}}, "`class_weights` has 1 numbers for 2 labels"),
    ],
)
def test_wrong_values_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        VTFusionConfig(**kwargs)


@pytest.mark.parametrize("text", TEXT)
def test_round_trip_of_every_text_config(text, tmp_path):
    config = tiny_config(text, "resnet", num_fusion_layers=2, temperature_init=0.2)
    config.save_pretrained(tmp_path)
    assert VTFusionConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize("vision", VISION)
def test_round_trip_of_every_vision_config(vision, tmp_path):
    config = tiny_config("bert", vision, vision_num_prefix_tokens=1)
    config.save_pretrained(tmp_path)
    loaded, expected = VTFusionConfig.from_pretrained(tmp_path).to_dict(), config.to_dict()
    assert loaded["vision_config"]["model_type"] == config.vision_config.model_type
    for values in (loaded, expected):
        for name in ("use_timm_backbone", "use_pretrained_backbone"):  # DETR forgets these two by itself
            values["vision_config"].pop(name, None)
    assert loaded == expected


def test_round_trip_without_vision_encoder(tmp_path):
    config = tiny_config("bert", "precomputed")
    assert config.vision_config is None and config.visual_hidden_size == 12
    config.save_pretrained(tmp_path)
    loaded = VTFusionConfig.from_pretrained(tmp_path)
    assert loaded.vision_config is None and loaded.visual_hidden_size == 12
    assert json.loads((tmp_path / "config.json").read_text())["vision_config"] is None


def test_label_map_round_trip(tmp_path):
    id2label = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}
    config = tiny_config(id2label=id2label, label2id={v: k for k, v in id2label.items()}, num_labels=4)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, VTFusionConfig)
    assert loaded.num_labels == 4 and loaded.id2label == id2label and loaded.label2id["B-LOC"] == 3


def test_attention_of_a_part_is_kept():
    text = BertConfig(attn_implementation="eager")
    assert VTFusionConfig(text_config=text).text_config._attn_implementation == "eager"
    assert VTFusionConfig(text_config=text, attn_implementation=None).text_config._attn_implementation == "eager"
    both = VTFusionConfig(text_config=text, attn_implementation="sdpa")
    assert both._attn_implementation == both.text_config._attn_implementation == "sdpa"
    parts = VTFusionConfig(text_config=text, attn_implementation={"text_config": "sdpa", "vision_config": "eager"})
    assert parts.text_config._attn_implementation == "sdpa"
    assert parts.vision_config._attn_implementation == "eager"


def test_options_of_the_heads_survive_a_folder(tmp_path):
    given = {"pooling": "last", "class_weights": [1.0, 2.0, 0.5], "label_smoothing": 0.1, "matching_loss_weight": 0.3}
    given |= {"tie_word_embeddings": True, "problem_type": "multi_label_classification"}
    tiny_config(**given).save_pretrained(tmp_path)
    loaded = VTFusionConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in given} == given
    # what a caller says still wins
    assert VTFusionConfig.from_pretrained(tmp_path, pooling="first", class_weights=None).pooling == "first"


def test_num_labels_belongs_to_the_whole():
    config = tiny_config(num_labels=7)
    assert config.num_labels == 7 and config.text_config.num_labels == 2


def test_values_given_to_from_pretrained_win(tmp_path):
    tiny_config(num_labels=3).save_pretrained(tmp_path)
    config = VTFusionConfig.from_pretrained(tmp_path, vision_loss_weight=0.0, num_labels=5)
    assert config.vision_loss_weight == 0.0 and config.num_labels == 5


def test_auto_map_is_whole_and_on_the_instance(tmp_path):
    config = tiny_config()
    assert vars(config)["auto_map"] == AUTO_MAP
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == AUTO_MAP
    assert VTFusionConfig.from_pretrained(tmp_path).auto_map == AUTO_MAP


def test_auto_map_of_another_repository_is_replaced():
    """A config that came over the Hub names `repo--module.Class`; saved again it must name the files beside it."""
    config = VTFusionConfig(auto_map={"AutoConfig": "someone/model--configuration_vtfusion.VTFusionConfig"})
    assert config.auto_map == AUTO_MAP


def test_auto_maps_of_two_configs_are_two():
    one, other = tiny_config(), tiny_config()
    one.auto_map["AutoModel"] = "changed"
    assert other.auto_map == AUTO_MAP


def test_ignored_at_inference_leaves_logits_and_gate():
    ignored = VTFusionConfig.keys_to_ignore_at_inference
    answers = {"logits", "start_logits", "end_logits", "matching_logits", "prediction_logits", "fusion_gate"}
    assert not answers & set(ignored)
    assert {"last_hidden_state", "visual_hidden_state", "fusion_loss", "attentions"} <= set(ignored)
