"""
Did the image help? Compares a model's test predictions with the true images, other images and none, and with those of
its text-only twin, over several seeds.
"""

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .arguments import DataArguments, ModelArguments, VTFusionTrainingArguments
from .files import write_whole
from .images import IMAGE_CONDITIONS
from .model_card import add_ablation, format_score, is_in_nats

# Keys of what is compared: the conditions of `apply_condition`, and the model that was trained without images.
TEXT_ONLY = "text_only"
_NAMES = {**IMAGE_CONDITIONS, TEXT_ONLY: "text-only twin"}
# The first two decide the verdict; they are fixed before anything is seen.
_COMPARISONS = (("true", "shuffled"), ("true", TEXT_ONLY), ("true", "blank"), ("true", "none"), ("none", TEXT_ONLY))

# Arguments that every run of a study has for itself, and beginnings of the names of those that change no result.
_SET_BY_STUDY = ("seed", "output_dir", "text_only", "image_conditions", "resume_from_checkpoint", "feature_cache_dir")
_WITHOUT_EFFECT = (
    "dataloader_", "ddp_", "disable_tqdm", "hub_", "log", "num_proc", "project", "push_to_hub", "report_to", "run_name",
    "save_", "trackio_",
)  # fmt: skip

Data = TypeVar("Data", bound=DataArguments)
Scores = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Difference:
    """
    The difference of a score between two systems on the same examples.

    Attributes:
        first (`str`): The system whose score is the minuend, such as `"true"`.
        second (`str`): The other, such as `"shuffled"`.
        metric (`str`): The score.
        mean (`float`): Mean difference over the seeds.
        low (`float`): Lower end of its interval.
        high (`float`): Upper end.
        p_value (`float`): Two-sided, of the hypothesis that there is no difference.
        by_seed (`tuple[float, ...]`): The difference of each seed.
    """

    first: str
    second: str
    metric: str
    mean: float
    low: float
    high: float
    p_value: float
    by_seed: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"{_NAMES.get(self.first, self.first)} − {_NAMES.get(self.second, self.second)}"


def paired_bootstrap(
    counts: Mapping[str, np.ndarray],
    scores: Scores,
    pairs: Sequence[tuple[str, str]],
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Difference]:
    """
    Intervals and p-values of differences between systems by the paired bootstrap over examples (Efron and Tibshirani,
    *An Introduction to the Bootstrap*, 1993; for scores of language systems Koehn, EMNLP 2004): all systems and seeds
    are scored on the same resampled examples. The p-value is twice the smaller share of resamples on one side of zero,
    so that it is below 1 − `confidence` where the interval leaves zero out.

    With two or more seeds the training varies too. Each resample is then moved by t · s / √n, where s is the standard
    deviation of the difference over the n seeds and t is drawn from Student's distribution with n − 1 degrees of
    freedom. If all examples were equally telling, this would be the t-test over seeds; if all seeds were equal, it is
    the bootstrap alone. Part of the noise is in both, so that intervals are rather too wide than too narrow; the
    bootstrap alone would call chance in the training a result. One seed says nothing of the training, and the interval
    then covers the choice of examples only.

    Args:
        counts (`Mapping[str, np.ndarray]`):
            For each system an array of shape `(seeds, examples, …)` of what can be added up over examples.
        scores (`Callable`):
            Takes sums of shape `(n, …)` and returns for each metric an array of shape `(n,)`.
        pairs (`Sequence[tuple[str, str]]`):
            Which systems to compare.
        num_resamples (`int`, *optional*, defaults to 10000):
            Number of resamples.
        confidence (`float`, *optional*, defaults to 0.95):
            Of the (percentile) interval.
        seed (`int`, *optional*, defaults to 0):
            Of the resamples.

    Returns:
        `list[Difference]`: One for each pair and metric, pair by pair.

    Raises:
        `ValueError`: The systems differ in their seeds or examples, or there is no example.
    """
    arrays = {name: np.asarray(array, dtype=np.float64) for name, array in counts.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"All systems must have the same seeds and examples, got the shapes {shapes}.")
    num_seeds, num_examples, *rest = next(iter(shapes.values()))
    if num_examples == 0:
        raise ValueError("There is no example to compare on.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")

    stacked = np.stack([array.reshape(num_seeds, num_examples, -1) for array in arrays.values()])
    by_example = np.moveaxis(stacked, 2, 0)  # (examples, systems, seeds, counts)
    flat = by_example.reshape(num_examples, -1)
    rng = np.random.default_rng(seed)

    def score(sums: np.ndarray) -> dict[str, np.ndarray]:
        values = scores(sums.reshape(-1, *rest))
        return {metric: value.reshape(-1, len(arrays), num_seeds) for metric, value in values.items()}

    observed = {metric: value[0] for metric, value in score(flat.sum(axis=0, keepdims=True)).items()}
    resampled: dict[str, list[np.ndarray]] = {metric: [] for metric in observed}
    chunk = max(1, 4_000_000 // num_examples)
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        # how often each example is drawn
        weights = rng.multinomial(num_examples, np.full(num_examples, 1 / num_examples), size=size)
        for metric, value in score(weights.astype(np.float64) @ flat).items():
            resampled[metric].append(value)
    drawn_t = rng.standard_t(num_seeds - 1, size=num_resamples) if num_seeds > 1 else np.zeros(num_resamples)

    names = list(arrays)
    differences = []
    for first, second in pairs:
        a, b = names.index(first), names.index(second)
        for metric, value in observed.items():
            by_seed = value[a] - value[b]
            draws = np.concatenate(resampled[metric])
            shifted = (draws[:, a] - draws[:, b]).mean(axis=1)
            if num_seeds > 1:
                shifted = shifted + drawn_t * by_seed.std(ddof=1) / np.sqrt(num_seeds)
            low, high = np.quantile(shifted, [(1 - confidence) / 2, (1 + confidence) / 2])
            # The observed data count as one resample on each side: no p-value is exactly zero.
            side = min(np.count_nonzero(shifted <= 0), np.count_nonzero(shifted >= 0))
            p_value = min(1.0, 2 * (side + 1) / (num_resamples + 1))
            differences.append(
                Difference(
                    first,
                    second,
                    metric,
                    float(by_seed.mean()),
                    float(low),
                    float(high),
                    p_value,
                    tuple(map(float, by_seed)),
                )
            )
    return differences


@dataclass(frozen=True)
class AblationReport:
    """
    What the ablation found. Made by [`compare_conditions`].

    Attributes:
        metric (`str`): The score that decides.
        seeds (`tuple[int, ...]`): The seeds of the trainings.
        num_examples (`int`): Test examples.
        num_with_image (`int`): How many of them have an image.
        confidence (`float`): Of the intervals.
        scores (`dict[str, dict[str, list[float]]]`): For each system and metric the score of each seed.
        differences (`list[Difference]`): All comparisons in all metrics.
    """

    metric: str
    seeds: tuple[int, ...]
    num_examples: int
    num_with_image: int
    confidence: float
    scores: dict[str, dict[str, list[float]]]
    differences: list[Difference]

    def difference(self, first: str, second: str, metric: str | None = None) -> Difference:
        """One comparison, by default in the score that decides."""
        wanted = (first, second, metric or self.metric)
        return next(d for d in self.differences if (d.first, d.second, d.metric) == wanted)

    @property
    def outcome(self) -> str:
        """
        `"helped"` if the true images are better than the text-only twin *and* than shuffled images, `"harmed"` if they
        are worse than the twin, else `"no evidence"`. One seed cannot tell a better model from a lucky training, so
        that what would be one of the first two is `"undecided"` then.
        """
        gain, content = self.difference("true", TEXT_ONLY), self.difference("true", "shuffled")
        helped, harmed = gain.low > 0 and content.low > 0, gain.high < 0
        if (helped or harmed) and len(self.seeds) == 1:
            return "undecided"
        return "helped" if helped else "harmed" if harmed else "no evidence"

    @property
    def verdict(self) -> str:
        """The outcome in plain words, with both differences that it rests on."""
        gain, content = self.difference("true", TEXT_ONLY), self.difference("true", "shuffled")
        over_text, over_shuffled = self._describe(gain), self._describe(content)
        if self.outcome == "helped":
            return f"The picture helped: {over_text}; {over_shuffled}."
        if self.outcome == "harmed":
            return f"The picture harmed: {over_text}; {over_shuffled}."
        if self.outcome == "undecided":
            return (
                f"Undecided after one seed: {over_text}; {over_shuffled}. The intervals cover the choice of test "
                "examples and not chance in the training; take three seeds or more."
            )
        if gain.low > 0:
            text = (
                f"No evidence that the picture helped: the model is better than its text-only twin ({over_text}), but "
                f"not better than with another text's picture ({over_shuffled})."
            )
        elif content.low > 0:
            text = (
                f"No evidence that the picture helped: the model reads it ({over_shuffled}), but is not better than "
                f"its text-only twin ({over_text})."
            )
        else:
            text = f"No evidence that the picture helped: {over_text}; {over_shuffled}."
        if len(self.seeds) == 1:
            text += " One seed: the intervals cover the choice of test examples, not chance in the training."
        return text

    def _describe(self, difference: Difference) -> str:
        mean, low, high = (
            _signed(difference.metric, value, 1) for value in (difference.mean, difference.low, difference.high)
        )
        return f"{difference.name} {mean}, {_percent(self.confidence)} interval {low} … {high}"

    def to_markdown(self) -> str:
        """Verdict and tables: every system by metric, mean ± standard deviation over seeds, and the differences."""
        metrics = list(next(iter(self.scores.values())))
        in_nats = [metric for metric in metrics if is_in_nats(metric)]
        lines = [
            f"**{self.verdict}**",
            "",
            f"{self.num_examples:,} test examples, {self.num_with_image:,} with an image; "
            f"seeds {', '.join(map(str, self.seeds))}; mean ± standard deviation over seeds, in points"
            + (f" ({', '.join(in_nats)} in nats)." if in_nats else "."),
            "",
            f"| | {' | '.join(metrics)} |",
            f"| --- |{' --- |' * len(metrics)}",
        ]
        for system, by_metric in self.scores.items():
            cells = [_mean_and_deviation(metric, by_metric[metric]) for metric in metrics]
            lines.append(f"| {_NAMES.get(system, system)} | {' | '.join(cells)} |")
        level = _percent(self.confidence)
        lines += [
            "",
            f"| difference in {self.metric} | mean | {level} interval | p | by seed |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [_row(d, d.name) for d in self.differences if d.metric == self.metric]
        others = [d for d in self.differences if d.metric != self.metric and (d.first, d.second) in _COMPARISONS[:2]]
        if others:
            lines += [
                "",
                "A look into the parts; no correction for their number.",
                "",
                f"| difference | mean | {level} interval | p | by seed |",
                "| --- | --- | --- | --- | --- |",
            ]
            lines += [_row(d, f"{d.metric}: {d.name}") for d in others]
        return "\n".join(lines) + "\n"

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `image_ablation.json` and `image_ablation.md`."""
        values = {"outcome": self.outcome, "verdict": self.verdict, **asdict(self)}
        write_whole(Path(folder, "image_ablation.json"), json.dumps(values, indent=2) + "\n")
        write_whole(Path(folder, "image_ablation.md"), self.to_markdown())

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "AblationReport":
        """Reads `image_ablation.json`."""
        values: dict[str, Any] = json.loads(Path(folder, "image_ablation.json").read_text(encoding="utf-8"))
        differences = [Difference(**{**d, "by_seed": tuple(d["by_seed"])}) for d in values.pop("differences")]
        del values["outcome"], values["verdict"]
        return cls(**{**values, "seeds": tuple(values["seeds"])}, differences=differences)


def _signed(metric: str, value: float, digits: int = 2) -> str:
    """A difference in nats, or in points with so many digits."""
    return (f"{value:+.4f}" if is_in_nats(metric) else f"{100 * value:+.{digits}f}").replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _mean_and_deviation(metric: str, values: Sequence[float]) -> str:
    mean = format_score(metric, float(np.mean(values)))
    return mean if len(values) == 1 else f"{mean} ± {format_score(metric, float(np.std(values, ddof=1)))}"


def _row(difference: Difference, name: str) -> str:
    mean, low, high, *by_seed = (
        _signed(difference.metric, value)
        for value in (difference.mean, difference.low, difference.high, *difference.by_seed)
    )
    p_value = "< 0.001" if difference.p_value < 0.001 else f"{difference.p_value:.3f}"
    return f"| {name} | {mean} | {low} … {high} | {p_value} | {', '.join(by_seed)} |"


def compare_conditions(
    counts: Mapping[str, np.ndarray],
    scores: Scores,
    metric: str,
    seeds: Sequence[int],
    num_with_image: int,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
) -> AblationReport:
    """
    Scores every condition and compares the conditions, see [`paired_bootstrap`].

    Args:
        counts (`Mapping[str, np.ndarray]`):
            For each of `"true"`, `"shuffled"`, `"blank"`, `"none"` and `"text_only"` an array of shape
            `(seeds, examples, …)`.
        scores (`Callable`):
            From sums of counts to scores by metric.
        metric (`str`):
            The score that decides.
        seeds (`Sequence[int]`):
            The seeds, in the order of the arrays.
        num_with_image (`int`):
            How many examples have an image.
        num_resamples (`int`, *optional*, defaults to 10000):
            Number of resamples.
        confidence (`float`, *optional*, defaults to 0.95):
            Of the intervals.

    Returns:
        [`AblationReport`]
    """
    by_system = {
        name: {key: list(map(float, value)) for key, value in scores(np.asarray(array, float).sum(axis=1)).items()}
        for name, array in counts.items()
    }
    differences = paired_bootstrap(counts, scores, _COMPARISONS, num_resamples, confidence)
    num_examples = next(iter(counts.values())).shape[1]
    return AblationReport(metric, tuple(seeds), num_examples, num_with_image, confidence, by_system, differences)


def ablate_images(
    run: Callable[..., Any],
    splits: Collection[str],
    read_counts: Callable[[Path], dict[str, np.ndarray]],
    scores: Scores,
    metric: str,
    model_args: ModelArguments,
    data_args: Data,
    training_args: VTFusionTrainingArguments,
    seeds: Sequence[int],
    *task_args: Any,
) -> AblationReport | None:
    """
    The whole study: trains and tests the model and its text-only twin for every seed, compares, and writes the report.
    A study that was interrupted goes on where it stopped.

    Args:
        run (`Callable`):
            Trains and tests once, and writes `results.json` last; takes `model_args`, `data_args`, `training_args` and
            `task_args`, in which all stands that it needs.
        splits (`Collection[str]`):
            The splits of the data that have labels, of which it trains on `"train"` and tests on `"test"`.
        read_counts (`Callable[[Path], dict[str, np.ndarray]]`):
            From the folder of a run to an array of shape `(examples, …)` for each condition it was tested with.
        scores (`Callable`):
            From sums of counts to scores by metric.
        metric (`str`):
            The score that decides.
        model_args, data_args, training_args:
            As for `run`; `seed`, `output_dir`, `text_only` and `image_conditions` are set for each run.
        seeds (`Sequence[int]`):
            The seeds.
        task_args (*optional*):
            Further dataclasses of arguments that the task has.

    Returns:
        [`AblationReport`] in the main process, else `None`.

    Raises:
        `ValueError`: A flag does not fit the study, a split is missing, the folder holds a study with other settings,
        or no test text has an image.
    """
    if "test" not in splits or "train" not in splits:
        raise ValueError("`image_ablation` needs a split to train on and one to test on, with labels.")
    if data_args.image_conditions != DataArguments().image_conditions:
        raise ValueError("`image_conditions` would do nothing: `image_ablation` tests with all of them.")
    for args, flag in ((data_args, "text_only"), (data_args, "image_only"), (training_args, "push_to_hub")):
        if getattr(args, flag, False):
            raise ValueError(
                f"`{flag}` does not go together with `image_ablation`, which trains several models, with images and "
                "without."
            )
    is_main = training_args.process_index == 0
    with training_args.main_process_first(desc="settings of the study"):
        settings = study_settings(model_args, data_args, training_args, *task_args) | data_digests(data_args)
        check_study(training_args.output_dir, settings, write=is_main)

    def train_and_test(seed: int, text_only: bool, folder: Path) -> None:
        seeded = copy.copy(training_args)
        seeded.seed, seeded.output_dir = seed, str(folder)
        seeded.resume_from_checkpoint = "True"
        folder.mkdir(parents=True, exist_ok=True)
        conditions = ["none"] if text_only else ["true", "shuffled", "blank", "none"]
        run(model_args, replace(data_args, text_only=text_only, image_conditions=conditions), seeded, *task_args)
        if is_main:
            # nothing to resume any more, and optimizer states are large
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)

    folders = run_study(train_and_test, seeds, training_args.output_dir, quiet=not is_main)
    if not is_main:
        return None
    by_run: dict[str, list[np.ndarray]] = {}
    for (_, text_only), folder in folders.items():
        for condition, counts in read_counts(folder).items():
            by_run.setdefault(TEXT_ONLY if text_only else condition, []).append(counts)
    results = json.loads((folders[seeds[0], False] / "results.json").read_text(encoding="utf-8"))
    num_with_image = results["test_texts_with_image"]
    if num_with_image == 0:
        raise ValueError("No test text has an image: there is nothing to compare.")
    report = compare_conditions(
        {name: np.stack(arrays) for name, arrays in by_run.items()}, scores, metric, seeds, num_with_image
    )
    report.save(training_args.output_dir)
    for (_, text_only), folder in folders.items():
        card = folder / "README.md"
        if not text_only and card.is_file():
            add_ablation(card, report.to_markdown())
    print(f"\n{report.to_markdown()}")
    return report


def study_settings(*arguments: Any) -> dict[str, Any]:
    """What the results of a study depend on, from its dataclasses of arguments."""
    values: dict[str, Any] = {}
    for part in arguments:
        values |= part.to_dict() if hasattr(part, "to_dict") else asdict(part)
    return {
        name: value
        for name, value in json.loads(json.dumps(values, default=str)).items()
        if name not in _SET_BY_STUDY and not name.startswith(_WITHOUT_EFFECT)
    }


def data_digests(data_args: DataArguments) -> dict[str, str]:
    """SHA-256 of the data files, and of the fingerprints of saved data sets: a study goes on with the same data."""
    digests = {}
    for name in ("dataset_name", "train_file", "validation_file", "test_file"):
        path = Path(getattr(data_args, name, None) or "")
        files = sorted(path.rglob("state.json")) if path.is_dir() else [path] if path.is_file() else []
        if getattr(data_args, name, None) and files:
            digest = hashlib.sha256()
            for file in files:
                digest.update(file.read_bytes())
            digests[f"{name}_sha256"] = digest.hexdigest()
    return digests


def check_study(output_dir: str | os.PathLike, settings: Mapping[str, Any], write: bool = True) -> None:
    """
    Keeps the settings of a study in its folder, so that it is not gone on with by others.

    Args:
        output_dir (`str` or `os.PathLike`): folder of the study.
        settings (`Mapping[str, Any]`): see [`study_settings`].
        write (`bool`, *optional*, defaults to `True`): whether a new folder gets them.

    Raises:
        `ValueError`: The folder holds a study with other settings; each is named.
    """
    path = Path(output_dir, "study.json")
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"`{name}` ({found.get(name)!r} there, {settings.get(name)!r} now)"
            for name in sorted({*found, *settings})
            if found.get(name) != settings.get(name)
        ]
        if changed:
            raise ValueError(
                f"{output_dir} holds a study with other settings: {', '.join(changed)}. Give another `output_dir`."
            )
    elif write:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=2) + "\n")


def run_study(
    train_and_test: Callable[[int, bool, Path], Any],
    seeds: Sequence[int],
    output_dir: str | os.PathLike,
    quiet: bool = False,
) -> dict[tuple[int, bool], Path]:
    """
    Trains and tests the model and its text-only twin for every seed; what has its `results.json` is not done again.

    Args:
        train_and_test (`Callable[[int, bool, Path], Any]`):
            Takes the seed, whether to leave out the images, and the folder, into which it writes `results.json` last.
        seeds (`Sequence[int]`):
            The seeds.
        output_dir (`str` or `os.PathLike`):
            Folder of the study.
        quiet (`bool`, *optional*, defaults to `False`):
            Whether to print nothing.

    Returns:
        `dict[tuple[int, bool], Path]`: The folder of each seed, with images (`False`) and text-only (`True`).

    Raises:
        `ValueError`: There is no seed, or one is given twice.
    """
    if len(set(seeds)) != len(seeds) or not seeds:
        raise ValueError(f"`seeds` must be one or more different numbers, got {list(seeds)}.")
    folders = {}
    plan = [(seed, text_only) for seed in seeds for text_only in (False, True)]
    for number, (seed, text_only) in enumerate(plan, 1):
        folder = Path(output_dir, f"seed-{seed}", "text_only" if text_only else "fused")
        folders[seed, text_only] = folder
        done = (folder / "results.json").is_file()
        if not quiet:
            kind = "text-only twin" if text_only else "with images"
            print(f"\nstudy, run {number} of {len(plan)}: seed {seed}, {kind}{': done before' if done else ''}")
        if not done:
            train_and_test(seed, text_only, folder)
    return folders
