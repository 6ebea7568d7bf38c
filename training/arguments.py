"""Command-line arguments that the task scripts share, and their parser."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from transformers import HfArgumentParser, TrainingArguments


@dataclass
class ModelArguments:
    """Which model: a VTFusion checkpoint, or two encoders to join."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A VTFusion model to go on with: a folder or a Hub id. Else give both encoders."},
    )
    text_model: str | None = field(default=None, metadata={"help": "Text encoder or LLM: a folder or a Hub id."})
    vision_model: str | None = field(default=None, metadata={"help": "Vision encoder: a folder or a Hub id."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of `model_name_or_path`."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether to run code that comes with the encoders. Only if you trust it."}
    )
    freeze_text: bool = field(default=False, metadata={"help": "Keep the text encoder as it is."})
    freeze_vision: bool = field(
        default=True,
        metadata={
            "help": "Keep the vision encoder as it is. Its features are then computed once for each image and cached."
        },
    )
    use_lora: bool = field(
        default=False,
        metadata={
            "help": "Train low-rank adapters of the text encoder (PEFT) instead of its weights; they are merged into "
            "these at the end."
        },
    )
    lora_rank: int | None = field(default=None, metadata={"help": "Rank of the adapters, by default 16."})
    lora_alpha: int | None = field(
        default=None, metadata={"help": "Adapters are scaled by this number over the rank, by default 32."}
    )
    lora_dropout: float | None = field(default=None, metadata={"help": "Dropout before the adapters, by default 0."})
    fusion_hidden_size: int | None = field(
        default=None, metadata={"help": "Width of the space that text and image share; a new model has 256."}
    )
    num_fusion_layers: int | None = field(
        default=None, metadata={"help": "Number of fusion layers; a new model has 1."}
    )
    num_fusion_heads: int | None = field(
        default=None, metadata={"help": "Number of heads of a fusion layer; a new model has 4."}
    )
    fusion_dropout: float | None = field(
        default=None, metadata={"help": "Dropout in the fusion layers; a new model has 0.1."}
    )
    image_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Probability with which a text loses its images in a training step, so that the model stays good "
            "without; a new model has 0."
        },
    )
    fusion_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of L_ct, the loss of text with image; a new model has 1."}
    )
    text_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of L_t, the loss of the text alone; a new model has 0.5."}
    )
    vision_loss_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of L_v, the loss of what the image positions predict; a new model has 0.1."},
    )
    contrastive_loss_weight: float | None = field(
        default=None, metadata={"help": "Weight of the contrastive loss between text and image; a new model has 0."}
    )
    matching_loss_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of image-text matching, in retrieval and pretraining; a new model has 1."},
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "One vector of a text's tokens, for heads that judge a whole text; a new model has mean.",
            "choices": ["mean", "first", "last"],
        },
    )
    class_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each label in the loss, in the order of the labels."}
    )
    label_smoothing: float | None = field(
        default=None, metadata={"help": "Part of a label's probability that is spread over all; a new model has 0."}
    )
    cross_attention_every: int | None = field(
        default=None,
        metadata={"help": "Layers of a language model per block of cross-attention; a new generation model has 4."},
    )
    num_resampler_tokens: int | None = field(
        default=None,
        metadata={"help": "Vectors that a generation model shortens each image to; a new one has 0, no resampler."},
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Tokens in a window; longer texts become several. By default what the text encoder takes."},
    )
    window_stride: int | None = field(
        default=None, metadata={"help": "Tokens that neighbouring windows share; a new model has 64."}
    )

    def __post_init__(self) -> None:
        if self.use_lora and self.freeze_text:
            raise ValueError("`use_lora` trains adapters of the text encoder, which `freeze_text` would freeze.")
        unread = [name for name in ("lora_rank", "lora_alpha", "lora_dropout") if getattr(self, name) is not None]
        if unread and not self.use_lora:
            raise ValueError(f"`{'`, `'.join(unread)}` would do nothing without `use_lora`.")


@dataclass
class GenerationModelArguments(ModelArguments):
    """Which language model and vision encoder. The language model stays as it is unless told otherwise."""

    freeze_text: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Keep the language model as it is, which is the default without `use_lora`."},
    )

    def __post_init__(self) -> None:
        if self.freeze_text is None:
            self.freeze_text = not self.use_lora
        super().__post_init__()


@dataclass
class SourceArguments:
    """Where the texts are: the same flags in every script, with the names of what the loaders take."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set on the Hub, or a folder saved by `save_to_disk`."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(
        default=None,
        metadata={"help": "CoNLL columns, .jsonl, .csv, .tsv, .parquet, or a folder with metadata.jsonl."},
    )
    validation_file: str | None = field(default=None, metadata={"help": "As `train_file`."})
    test_file: str | None = field(default=None, metadata={"help": "As `train_file`."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the image or images."})
    image_folder: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from."})
    allow_outside_paths: bool = field(
        default=False,
        metadata={
            "help": "Open images that lie neither in the folder of the data nor in `image_folder`. Only if you trust the "
            "data: it may name any image on this machine."
        },
    )

    def origin(self) -> dict[str, Any]:
        """Where the data is: the arguments of `open_streams`."""
        names = [field.name for field in fields(SourceArguments)]
        return {name: getattr(self, name) for name in names if not name.endswith("_column")}

    def source(self) -> dict[str, Any]:
        """The arguments of the task's loader: where the data is, and the names of its columns and labels."""
        names = [field.name for field in fields(self) if field.name.endswith(("_column", "labels"))]
        return {**self.origin(), **{name: getattr(self, name) for name in names}}


@dataclass
class TokenSourceArguments(SourceArguments):
    """Texts as words, with tags."""

    tokens_column: str | None = field(default=None, metadata={"help": "Column of the words."})
    tags_column: str | None = field(default=None, metadata={"help": "Column of the tags."})
    labels: list[str] | None = field(
        default=None,
        metadata={"help": "What integers as tags mean, in order: O B-PER I-PER …; or the order of the labels."},
    )


@dataclass
class DataArguments(SourceArguments):
    """Which data, and how it is prepared."""

    max_images: int = field(default=4, metadata={"help": "Images of a text beyond this number are left out."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first rows, for a try."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same for validation and test."})
    text_only: bool = field(
        default=False, metadata={"help": "Ignore all images: the text-only twin of a run with the same settings."}
    )
    on_bad_image: str = field(
        default="error",
        metadata={
            "help": "What an unreadable image does: stop the run, or count as no image. The number is printed.",
            "choices": ["error", "skip_image"],
        },
    )
    image_conditions: list[str] = field(
        default_factory=lambda: ["true", "none"],
        # checked before the training, not after it
        metadata={"help": "Images to test with.", "choices": ["true", "shuffled", "blank", "none"]},
    )
    feature_cache_dir: str | None = field(
        default=None, metadata={"help": "Where features of a frozen vision encoder are kept between runs."}
    )
    feature_dtype: str = field(
        default="float32", metadata={"help": "Number format of cached features.", "choices": ["float32", "float16"]}
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenize."})

    def __post_init__(self) -> None:
        if self.max_images < 1:
            raise ValueError(
                f"`max_images` must be at least 1, got {self.max_images}. `text_only` ignores all images."
            )

    def max_samples(self, split: str) -> int | None:
        """`max_train_samples` or `max_eval_samples`."""
        return self.max_train_samples if split == "train" else self.max_eval_samples


@dataclass
class TokenDataArguments(DataArguments, TokenSourceArguments):
    """Data for entity recognition."""

    decoding: str | None = field(
        default=None,
        metadata={
            "help": "Best tag of each word, or the best valid IOB2 sequence: saved with the model; a new one has argmax.",
            "choices": ["argmax", "viterbi"],
        },
    )


@dataclass
class GateDataArguments(TokenDataArguments):
    """Data to see on which words used the picture."""

    # No flags here: nothing is trained, and what is looked at is the true images beside none.
    text_only: bool = field(default=False, init=False)
    image_conditions: list[str] = field(default_factory=lambda: ["true", "none"], init=False)
    max_train_samples: int | None = field(default=None, init=False)
    labels: list[str] | None = field(default=None, init=False)  # the model has them


@dataclass
class ClassificationDataArguments(DataArguments):
    """Data for the classification of texts."""

    text_column: str | None = field(default=None, metadata={"help": "Column of the text."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of a second text, if there is one."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the label, labels or number."})
    labels: list[str] | None = field(
        default=None,
        metadata={"help": "The labels in order, and what integers as labels mean. By default the data tells."},
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "By default the labels tell.",
            "choices": ["single_label_classification", "multi_label_classification", "regression"],
        },
    )
    image_only: bool = field(
        default=False, metadata={"help": "Ignore all texts: what the images alone tell, with the same settings."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_only and self.text_only:
            raise ValueError("`image_only` and `text_only` leave nothing to learn from: give one of them.")


@dataclass
class AnswerDataArguments(DataArguments):
    """Data for visual question answering."""

    question_column: str | None = field(default=None, metadata={"help": "Column of the question."})
    answer_column: str | None = field(
        default=None,
        metadata={"help": "Column of the answer, of the answers of several people, or of these with scores."},
    )
    max_answers: int | None = field(
        default=None, metadata={"help": "Choose from the most frequent answers; by default from all of the training."}
    )


@dataclass
class QuestionDataArguments(DataArguments):
    """Data for extractive question answering."""

    question_column: str | None = field(default=None, metadata={"help": "Column of the question."})
    context_column: str | None = field(default=None, metadata={"help": "Column of the text that holds the answer."})
    answers_column: str | None = field(
        default=None, metadata={"help": "Column of the answers, as in SQuAD or as text."}
    )
    max_answer_length: int = field(default=30, metadata={"help": "Tokens of an answer at most."})
    null_threshold: float = field(
        default=0.0,
        metadata={
            "help": "Where the training has questions without an answer: how far the score of none must lie above that of "
            "the best answer."
        },
    )


@dataclass
class CaptionDataArguments(DataArguments):
    """Images with captions."""

    text_column: str | None = field(
        default=None, metadata={"help": "Column of the caption, or of the captions of an image."}
    )
    # No flags here: without its image a caption has nothing to be matched with.
    text_only: bool = field(default=False, init=False)
    image_conditions: list[str] = field(default_factory=lambda: ["true"], init=False)


@dataclass
class GenerationDataArguments(DataArguments):
    """Prompts with responses, or conversations, with images."""

    prompt_column: str | None = field(
        default=None, metadata={"help": "Column of the prompt or question, if there is one."}
    )
    response_column: str | None = field(
        default=None, metadata={"help": "Column of the response, answer or caption, or of several."}
    )
    messages_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of a conversation instead, the last message of the assistant, with a chat template."
        },
    )
    prompt_template: str = field(
        default="{prompt}",
        metadata={"help": "What is read before the response, with {prompt} for the row's own, <image> for an image."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prompt_template = self.prompt_template.replace("\\n", "\n")


@dataclass
class GenerationArguments:
    """How text is generated and judged."""

    max_new_tokens: int = field(default=32, metadata={"help": "Tokens of a generated text at most."})
    num_beams: int = field(default=1, metadata={"help": "Beams; 1 is greedy."})
    image_scope: str | None = field(
        default=None,
        metadata={
            "help": "Whether text sees the latest image before it or all; a new model has latest.",
            "choices": ["latest", "all"],
        },
    )
    metric: str = field(
        default="log_likelihood",
        metadata={
            "help": "The score that the image conditions are compared by: of the true responses, or of the generated.",
            "choices": ["log_likelihood", "exact_match", "bleu"],
        },
    )


@dataclass
class RetrievalArguments:
    """How images are found for texts, and texts for images."""

    rerank_top_k: int = field(
        default=16,
        metadata={
            "help": "How many of the best are ranked again by similarity plus matching score of the fused pair; 0 for none."
        },
    )

    def __post_init__(self) -> None:
        if self.rerank_top_k < 0:
            raise ValueError(f"`rerank_top_k` must not be negative, got {self.rerank_top_k}.")


@dataclass
class PretrainingArguments:
    """What is masked, and whether the data is streamed."""

    mlm_probability: float = field(default=0.15, metadata={"help": "Part of the tokens that are masked."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read, tokenize and decode rows as they are needed, with nothing kept on disk. Needs `max_steps`."
        },
    )
    shuffle_buffer_size: int = field(
        default=1000, metadata={"help": "Rows of a stream that are shuffled at a time; they are held in memory."}
    )

    def __post_init__(self) -> None:
        if not 0 < self.mlm_probability < 1:
            raise ValueError(f"`mlm_probability` must lie between 0 and 1, got {self.mlm_probability}.")
        if self.shuffle_buffer_size < 1:
            raise ValueError(f"`shuffle_buffer_size` must be at least 1, got {self.shuffle_buffer_size}.")


@dataclass
class AblationArguments:
    """Did the image help? The study that answers it."""

    image_ablation: bool = field(
        default=False,
        metadata={
            "help": "Train the model and its text-only twin for every seed, test them with the true, shuffled, blank and "
            "no image, and say whether the image helped. A study that was interrupted goes on where it stopped."
        },
    )
    seeds: list[int] | None = field(
        default=None, metadata={"help": "Seeds of the trainings of `image_ablation`. By default 0 1 2."}
    )

    def __post_init__(self) -> None:
        if self.seeds is not None and not self.image_ablation:
            raise ValueError("`seeds` is for `image_ablation`. A single training takes `seed`.")
        if self.seeds is None:
            self.seeds = [0, 1, 2]


@dataclass
class VTFusionTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of a fine-tuning run, and what fusion adds."""

    output_dir: str = field(default="outputs/run", metadata={"help": "Where everything is written."})
    # Trainer would drop the images, whose column is not an argument of `forward`.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: the collator needs them."})
    fusion_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the fusion part and the head, which are new. By default `learning_rate`."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better `metric_for_best_model`."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps, epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep, besides the best."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Go back to the best checkpoint at the end."})
    metric_for_best_model: str | None = field(
        default="f1", metadata={"help": "What the best checkpoint is best in: a score of the task, or loss."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Go on with the count of `early_stopping_patience` that a checkpoint has."}
    )
    report_to: str = field(default="none", metadata={"help": "Experiment trackers."})
    license: str | None = field(default=None, metadata={"help": "Licence of the model, for its card."})
    language: list[str] | None = field(
        default=None, metadata={"help": "Languages of the texts, for the card: codes such as en."}
    )
    hub_strategy: str = field(default="end", metadata={"help": "Must stay end: the finished model is pushed."})
    # texts of one length in a batch: less padding; transformers renamed the flag between 5.0 and 5.24
    if "train_sampling_strategy" in TrainingArguments.__dataclass_fields__:
        train_sampling_strategy: str = field(
            default="group_by_length", metadata={"help": "random, sequential, group_by_length or batch_rebalance."}
        )
    else:
        group_by_length: bool = field(default=True, metadata={"help": "Put texts of one length in a batch."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric_for_best_model is not None:
            # Trainer takes both forms
            self.metric_for_best_model = self.metric_for_best_model.removeprefix("eval_")
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be False: Trainer would drop the images.")
        if self.hub_strategy != "end":
            raise ValueError(
                "`hub_strategy` must be end: Trainer would push the predictions and states of `output_dir`."
            )
        if self.label_smoothing_factor:
            raise ValueError(
                "`label_smoothing_factor` is not supported: Trainer's loss would replace L_ct, L_t and L_v. Give "
                "`label_smoothing`."
            )


class RunArguments(NamedTuple):
    """
    All that a run was told.

    Attributes:
        task (`str`): its name on the Hub, such as `"token-classification"`.
        model ([`ModelArguments`]): where the model comes from.
        data ([`DataArguments`]): where the data is, and what it is tested with.
        training ([`VTFusionTrainingArguments`]): all the rest.
    """

    task: str
    model: ModelArguments
    data: DataArguments
    training: VTFusionTrainingArguments


def random_order() -> dict[str, Any]:
    """
    Defaults of a parser for rows in random order: a batch whose texts have one length says little about what tells its
    images apart.
    """
    if "train_sampling_strategy" in TrainingArguments.__dataclass_fields__:
        return {"train_sampling_strategy": "random"}
    return {"group_by_length": False}


class ScriptArgumentParser(HfArgumentParser):
    """`HfArgumentParser` that ends at an unknown flag as at any other wrong one: with the usage and exit code 2."""

    def parse_args_into_dataclasses(self, args: Sequence[str] | None = None, **kwargs: Any) -> tuple[Any, ...]:
        *parsed, unknown = super().parse_args_into_dataclasses(args, return_remaining_strings=True, **kwargs)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return tuple(parsed)
