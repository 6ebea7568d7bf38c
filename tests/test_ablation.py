"""The image ablation: intervals and p-values against scipy, the verdict, reports, and studies that go on."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import scipy.stats
from datasets import Dataset

from vtfusion.training.ablation import (
    TEXT_ONLY,
    AblationReport,
    Difference,
    ablate_images,
    check_study,
    compare_conditions,
    data_digests,
    paired_bootstrap,
    run_study,
    study_settings,
)
from vtfusion.training.arguments import (
    AblationArguments,
    ClassificationDataArguments,
    DataArguments,
    GenerationArguments,
    ModelArguments,
    TokenDataArguments,
    VTFusionTrainingArguments,
)


def accuracy(totals):
    """From sums of (right, all)."""
    return {"accuracy": totals[..., 0] / totals[..., 1]}


def f1(totals):
    """From sums of (right, predicted, true)."""
    return {"F1": 2 * totals[..., 0] / (totals[..., 1] + totals[..., 2])}


def planted_counts(rng, gain=0.0, examples=400):
    """One seed of two systems with a few entities in each text; the second finds each with 0.7, the first with more."""
    true = rng.integers(1, 4, examples)
    hard = rng.normal(size=examples)  # what is hard for one is hard for the other
    chances = [1 / (1 + np.exp(-(1 + hard + shift))) for shift in (gain, 0.0)]
    return [np.stack([rng.binomial(true, chance), true, true], axis=-1)[None] for chance in chances]


# ------------------------------------------------------------------------------------------------- statistics


def test_one_seed_is_the_paired_bootstrap_of_scipy():
    a, b = planted_counts(np.random.default_rng(0), gain=0.35)
    [ours] = paired_bootstrap({"a": a, "b": b}, f1, [("a", "b")], num_resamples=20_000)

    def statistic(right_a, right_b, true):
        return (right_a.sum(-1) - right_b.sum(-1)) / true.sum(-1)  # F1, where as many are predicted as are true

    data = (a[0, :, 0], b[0, :, 0], a[0, :, 1])
    theirs = scipy.stats.bootstrap(
        data, lambda *x, axis=-1: statistic(*x), paired=True, vectorized=True, n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(1), batch=1000,
    )  # fmt: skip
    assert ours.mean == pytest.approx(statistic(*data), abs=1e-12)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)
    share = np.mean(theirs.bootstrap_distribution <= 0)
    assert ours.p_value == pytest.approx(2 * share, abs=0.01)
    # another test of the same hypothesis, by swapping the two systems at random in each text
    permuted = scipy.stats.permutation_test(
        (data[0] - data[1],), lambda x, axis: x.sum(axis), permutation_type="samples", vectorized=True,
        n_resamples=20_000, rng=np.random.default_rng(2),
    )  # fmt: skip
    assert 0.001 < permuted.pvalue < 0.2
    assert ours.p_value == pytest.approx(permuted.pvalue, abs=0.02)


def test_equal_examples_leave_the_t_test_over_seeds():
    right = np.array([[7], [9], [8], [7]])
    a = np.repeat(np.stack([right, np.full_like(right, 10)], axis=-1), 50, axis=1)
    b = np.repeat(np.array([6, 10])[None, None], 4, axis=0).repeat(50, axis=1)
    [ours] = paired_bootstrap({"a": a, "b": b}, accuracy, [("a", "b")], num_resamples=200_000)
    assert ours.by_seed == pytest.approx([0.1, 0.3, 0.2, 0.1])
    theirs = scipy.stats.ttest_1samp([0.1, 0.3, 0.2, 0.1], 0)
    low, high = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.005)
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.002)


def test_equal_systems_differ_by_nothing():
    a, _ = planted_counts(np.random.default_rng(0))
    [ours] = paired_bootstrap({"a": a, "b": a.copy()}, f1, [("a", "b")], num_resamples=200)
    assert (ours.mean, ours.low, ours.high, ours.p_value) == (0, 0, 0, 1)


def test_seeds_with_opposite_results_widen_the_interval():
    rng = np.random.default_rng(0)
    a, b = (np.concatenate(pair) for pair in zip(*(planted_counts(rng, gain) for gain in (0.8, -0.6)), strict=True))
    [together] = paired_bootstrap({"a": a, "b": b}, f1, [("a", "b")], num_resamples=2000)
    [alone] = paired_bootstrap({"a": a[:1], "b": b[:1]}, f1, [("a", "b")], num_resamples=2000)
    assert alone.low > 0
    assert together.low < 0 < together.high
    assert together.mean == pytest.approx(np.mean(together.by_seed))


def rejections(seeds, training_noise, repeats=200, examples=200):
    """How often 5 % are undercut where both systems are equally good and only chance tells them apart."""
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(repeats):
        true, hard = rng.integers(1, 4, examples), rng.normal(size=examples)
        systems = []
        for _ in range(2):
            chances = [1 / (1 + np.exp(-(1 + hard + training_noise * rng.normal()))) for _ in range(seeds)]
            systems.append(np.stack([np.stack([rng.binomial(true, p), true, true], axis=-1) for p in chances]))
        [found] = paired_bootstrap(dict(zip("ab", systems, strict=True)), f1, [("a", "b")], num_resamples=1000)
        rejected += found.p_value < 0.05
    return rejected


def test_a_planted_null_is_rejected_at_its_nominal_rate():
    """200 repeats, 5 %: 10 are expected, and fewer than 3 or more than 19 would come about once in 200 times."""
    assert 3 <= rejections(seeds=1, training_noise=0.0) <= 19


@pytest.mark.parametrize("training_noise", [0.0, 0.1, 0.3])
def test_chance_in_the_training_is_no_evidence(training_noise):
    """With the resampled examples alone, 0.3 would be rejected in about half of the repeats."""
    assert rejections(seeds=3, training_noise=training_noise) <= 19


def test_a_planted_gain_is_found():
    rng = np.random.default_rng(0)
    runs = [planted_counts(rng, gain=0.5) for _ in range(3)]
    a, b = (np.concatenate(arrays) for arrays in zip(*runs, strict=True))
    [found] = paired_bootstrap({"a": a, "b": b}, f1, [("a", "b")], num_resamples=2000)
    assert found.low > 0 and found.p_value < 0.05


def test_systems_of_other_sizes_raise():
    a, b = planted_counts(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"same seeds and examples.*'b': \(1, 399, 3\)"):
        paired_bootstrap({"a": a, "b": b[:, 1:]}, f1, [("a", "b")])
    with pytest.raises(ValueError, match="no example"):
        paired_bootstrap({"a": a[:, :0], "b": b[:, :0]}, f1, [("a", "b")])


# ---------------------------------------------------------------------------------------------------- verdict


def report(gain, content, seeds=(0, 1)):
    """A report whose two deciding differences have these intervals."""
    differences = [
        Difference("true", "shuffled", "F1", sum(content) / 2, *content, 0.5, (0.0,) * len(seeds)),
        Difference("true", TEXT_ONLY, "F1", sum(gain) / 2, *gain, 0.5, (0.0,) * len(seeds)),
    ]
    return AblationReport("F1", seeds, 100, 60, 0.95, {"true": {"F1": [0.5] * len(seeds)}}, differences)


@pytest.mark.parametrize(
    ("gain", "content", "outcome", "words"),
    [
        ((0.01, 0.03), (0.02, 0.04), "helped", "The picture helped: true image − text-only twin +2.0, 95 % interval"),
        ((-0.004, 0.006), (-0.001, 0.002), "no evidence", "helped: true image − text-only twin +0.1, 95 % interval −0.4 … +0.6"),
        ((0.01, 0.03), (-0.01, 0.01), "no evidence", "not better than with another text's picture"),
        ((-0.01, 0.01), (0.01, 0.03), "no evidence", "the model reads it"),
        ((-0.03, -0.01), (-0.01, 0.01), "harmed", "The picture harmed: true image − text-only twin −2.0"),
        ((-0.03, -0.01), (0.01, 0.02), "harmed", "The picture harmed"),
    ],
)  # fmt: skip
def test_verdict(gain, content, outcome, words):
    assert report(gain, content).outcome == outcome
    assert words in report(gain, content).verdict


@pytest.mark.parametrize(
    ("gain", "content", "outcome", "words"),
    [
        ((0.01, 0.03), (0.02, 0.04), "undecided", "Undecided after one seed"),
        ((-0.03, -0.01), (0.02, 0.04), "undecided", "take three seeds or more"),
        ((-0.01, 0.01), (-0.01, 0.01), "no evidence", "One seed: the intervals cover"),
    ],
)
def test_one_seed_decides_nothing(gain, content, outcome, words):
    assert report(gain, content, seeds=(0,)).outcome == outcome
    assert words in report(gain, content, seeds=(0,)).verdict
    assert "seed" not in report(gain, content).verdict


def all_conditions():
    rng = np.random.default_rng(0)
    good, poor = (
        np.concatenate(arrays) for arrays in zip(*(planted_counts(rng, 1.5, 300) for _ in range(2)), strict=True)
    )
    return {"true": good, "shuffled": poor, "blank": poor, "none": poor, TEXT_ONLY: poor}


def test_report_from_counts():
    found = compare_conditions(all_conditions(), f1, "F1", [3, 4], num_with_image=250, num_resamples=500)
    assert found.outcome == "helped"
    expected = f1(all_conditions()["true"].sum(axis=1))["F1"]
    assert found.scores["true"]["F1"] == pytest.approx(list(expected))
    pairs = [(d.first, d.second) for d in found.differences]
    assert pairs == [
        ("true", "shuffled"), ("true", TEXT_ONLY), ("true", "blank"), ("true", "none"), ("none", TEXT_ONLY),
    ]  # fmt: skip
    assert found.difference("none", TEXT_ONLY).mean == 0


def test_report_survives_its_files(tmp_path):
    found = compare_conditions(all_conditions(), f1, "F1", [3, 4], num_with_image=250, num_resamples=500)
    found.save(tmp_path)
    assert AblationReport.load(tmp_path) == found
    values = json.loads((tmp_path / "image_ablation.json").read_text())
    assert values["outcome"] == "helped" and values["verdict"] == found.verdict
    text = (tmp_path / "image_ablation.md").read_text()
    assert "300 test examples, 250 with an image; seeds 3, 4" in text
    mean = 100 * np.mean(found.scores["true"]["F1"])
    deviation = 100 * abs(found.scores["true"]["F1"][0] - found.scores["true"]["F1"][1]) / np.sqrt(2)
    assert f"| true image | {mean:.2f} ± {deviation:.2f} |" in text


def test_a_log_likelihood_is_told_in_nats_beside_scores_in_points():
    def scores(totals):
        return {"log_likelihood": totals[:, 0] / totals[:, 1], "bleu": totals[:, 1] / totals[:, 1] / 4}

    counts = {name: np.array([[[-6.7428, 1.0]], [[-6.7428, 1.0]]]) for name in all_conditions()}
    counts["true"] = counts["true"] + [0.5, 0.0]
    found = compare_conditions(counts, scores, "log_likelihood", [0, 1], num_with_image=1, num_resamples=20)
    text = found.to_markdown()
    assert "| true image | -6.2428 ± 0.0000 | 25.00 ± 0.00 |" in text
    assert "| true image − shuffled image | +0.5000 | +0.5000 … +0.5000 |" in text
    assert "| bleu: true image − shuffled image | +0.00 | +0.00 … +0.00 |" in text
    assert "in points (log_likelihood in nats)." in text
    assert "shuffled image +0.5000, 95 % interval +0.5000 … +0.5000" in found.verdict


# ------------------------------------------------------------------------------------------------------ study


def test_study_runs_everything_once_and_goes_on(tmp_path):
    calls = []

    def train(seed, text_only, folder, fail=False):
        calls.append((seed, text_only))
        if fail and len(calls) == 3:
            raise KeyboardInterrupt
        folder.mkdir(parents=True)
        (folder / "results.json").write_text("{}")

    with pytest.raises(KeyboardInterrupt):
        run_study(lambda *run: train(*run, fail=True), [5, 7], tmp_path)
    assert calls == [(5, False), (5, True), (7, False)]
    folders = run_study(train, [5, 7], tmp_path)
    assert calls[3:] == [(7, False), (7, True)]
    assert folders[7, True] == tmp_path / "seed-7" / "text_only"
    # more seeds may join later
    run_study(train, [5, 7, 9], tmp_path)
    assert calls[5:] == [(9, False), (9, True)]


def test_study_with_other_settings_raises(tmp_path):
    check_study(tmp_path, {"learning_rate": 1e-3, "text_model": "a"})
    check_study(tmp_path, {"learning_rate": 1e-3, "text_model": "a"})
    with pytest.raises(ValueError, match=r"other settings: `learning_rate` \(0.001 there, 0.01 now\).*`output_dir`"):
        check_study(tmp_path, {"learning_rate": 1e-2, "text_model": "a"})


def test_a_study_goes_on_with_the_same_data(tmp_path):
    def digests():
        return data_digests(TokenDataArguments(test_file=str(file), dataset_name=str(saved)))

    file, saved = tmp_path / "test.jsonl", tmp_path / "saved"
    file.write_text('{"text": "a"}')
    Dataset.from_list([{"text": "a"}]).save_to_disk(saved / "test")
    first = digests()
    assert first["test_file_sha256"] == hashlib.sha256(b'{"text": "a"}').hexdigest()
    assert digests() == first
    file.write_text('{"text": "b"}')
    shutil.rmtree(saved)
    Dataset.from_list([{"text": "b"}]).save_to_disk(saved / "test")
    second = digests()
    assert all(second[name] != first[name] for name in first) and len(first) == 2
    assert data_digests(TokenDataArguments(dataset_name="name/on-the-hub")) == {}


@pytest.mark.parametrize("flag", ["text_only", "image_only"])
def test_a_study_is_of_models_with_images_and_without(flag, tmp_path):
    training_args = VTFusionTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    data_args = ClassificationDataArguments(**{flag: True})
    with pytest.raises(ValueError, match=f"`{flag}` does not go together with `image_ablation`"):
        ablate_images(None, ["train", "test"], None, None, "accuracy", ModelArguments(), data_args, training_args, [0])


def test_settings_are_what_changes_results(tmp_path):
    def settings(**training):
        training = VTFusionTrainingArguments(**{"output_dir": str(tmp_path), "use_cpu": True, **training})
        return study_settings(ModelArguments(text_model="a"), DataArguments(max_images=2), training)

    first = settings()
    assert first["text_model"] == "a" and first["max_images"] == 2 and first["learning_rate"] == 5e-5
    assert settings(output_dir=str(tmp_path / "b"), seed=5, logging_steps=3, save_total_limit=4) == first
    assert settings(learning_rate=1e-3) != first
    assert settings(num_train_epochs=1) != first


def test_a_study_is_not_gone_on_with_by_other_arguments_of_the_task(tmp_path):
    calls = []

    def run(model_args, data_args, training_args, task_args):
        calls.append(task_args)
        raise KeyboardInterrupt  # as if it had been stopped

    def study(**flags):
        training_args = VTFusionTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        arguments = (ModelArguments(), DataArguments(), training_args, [0], GenerationArguments(**flags))
        ablate_images(run, ["train", "test"], None, None, "bleu", *arguments)

    with pytest.raises(KeyboardInterrupt):
        study(num_beams=4)
    with pytest.raises(ValueError, match=r"other settings: `num_beams` \(4 there, 1 now\)"):
        study()
    with pytest.raises(KeyboardInterrupt):
        study(num_beams=4)
    assert calls == [GenerationArguments(num_beams=4)] * 2


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_wrong_seeds_raise(seeds, tmp_path):
    with pytest.raises(ValueError, match="`seeds` must be one or more different numbers"):
        run_study(lambda *run: None, seeds, tmp_path)


def test_seeds_without_a_study_raise():
    with pytest.raises(ValueError, match="`seeds` is for `image_ablation`"):
        AblationArguments(seeds=[0, 1])
    assert AblationArguments(image_ablation=True, seeds=[4]).seeds == [4]
