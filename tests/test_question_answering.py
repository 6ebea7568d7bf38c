"""Questions to windows and back to answers. Expectations come from the tokenizers' own windows, or from plain loops."""

import copy
import json
import math
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import ViTImageProcessor

from tiny import randomize_fusion, tiny_config
from tokenizers_for_tests import TOKENIZERS
from vtfusion import VTFusionForQuestionAnswering, VTFusionProcessor
from vtfusion.postprocessing_vtfusion import best_spans
from vtfusion.training.arguments import VTFusionTrainingArguments
from vtfusion.training.collator import FusionCollator
from vtfusion.training.images import ImageStore
from vtfusion.training.question_answering import (
    QuestionEvaluator,
    answer_positions,
    answer_scores,
    encode_contexts,
    read_answer_counts,
    read_answers,
)
from vtfusion.training.trainer import VTFusionTrainer
from vtfusion.words_vtfusion import visible_spans

CONTEXT = "The quick fox isn't lazy; in  New York, 10,000 words (Zoë's) jump over Acme 😀🎉 town. " * 3
QUESTION = "Where is the fox?"


def squad(*rows):
    """Rows of (question, context, answers as (start, end) or as words to look for)."""
    columns = {"id": [], "question": [], "context": [], "answers": []}
    for index, (question, context, answers) in enumerate(rows):
        spans = [(context.index(a), context.index(a) + len(a)) if isinstance(a, str) else a for a in answers]
        columns["id"].append(f"q{index}")
        columns["question"].append(question)
        columns["context"].append(context)
        columns["answers"].append({"text": [context[a:b] for a, b in spans], "answer_start": [a for a, _ in spans]})
    return Dataset.from_dict(columns)


def encode(dataset, processor):
    return encode_contexts(dataset, processor, [None] * len(dataset))


def word_spans(text):
    """(start, end) of what stands between spaces."""
    ends, spans, start = [i for i, c in enumerate(text + " ") if c.isspace()], [], 0
    for end in ends:
        if end > start:
            spans.append((start, end))
        start = end + 1
    return spans


def oracle(batch, answers):
    """What a model would say that knows the characters of each text's answer (`None`: there is none)."""
    shape = batch.token_spans.shape[:2]
    start, end = torch.zeros(shape), torch.zeros(shape)
    mask = torch.as_tensor(batch["attention_mask"])
    for window, row in enumerate(batch.row_of_window):
        tokens = [(int(a), int(b)) for a, b in batch.token_spans[window]]
        wanted = answers[row]
        first = [t for t, (a, _) in enumerate(tokens) if wanted and a == wanted[0]]
        last = [t for t, (_, b) in enumerate(tokens) if wanted and b == wanted[1]]
        if not (first and last):
            first = last = [int(mask[window].nonzero()[0])]
        start[window, first[0]] = end[window, last[-1]] = 10.0
    low = torch.finfo(torch.float32).min
    return SimpleNamespace(start_logits=start.masked_fill(mask == 0, low), end_logits=end.masked_fill(mask == 0, low))


# ----------------------------------------------------- to the model ------------------------------------------------


def test_spans_without_spaces():
    spans = np.array([(0, 2), (0, 1), (1, 4), (3, 4), (4, 4), (4, 7), (6, 7)])
    assert visible_spans(spans, " ab \t😀\n").tolist() == [
        [1, 2],
        [-1, -1],
        [1, 3],
        [-1, -1],
        [-1, -1],
        [5, 6],
        [-1, -1],
    ]
    assert visible_spans(np.empty((0, 2), dtype=int), "").shape == (0, 2)


def test_windows_are_those_of_the_tokenizer(tokenizer):
    processor = VTFusionProcessor(tokenizer=tokenizer, window_length=50, window_stride=12)
    windows = encode(squad((QUESTION, CONTEXT, [])), processor)
    theirs = tokenizer(
        QUESTION, CONTEXT, truncation="only_second", max_length=50, stride=12, return_overflowing_tokens=True
    )
    for name in tokenizer.model_input_names:
        assert windows[name][:] == theirs[name]
    assert len(windows) > 2 and windows["length"][:] == list(map(len, theirs["input_ids"]))


def test_token_spans_are_those_of_the_context(tokenizer):
    processor = VTFusionProcessor(tokenizer=tokenizer, window_length=50, window_stride=12)
    windows = encode(squad((QUESTION, CONTEXT, [])), processor)
    theirs = tokenizer(
        QUESTION,
        CONTEXT,
        truncation="only_second",
        max_length=50,
        stride=12,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    for window, spans in enumerate(windows["token_spans"]):
        for token, (source, offsets) in enumerate(
            zip(theirs.sequence_ids(window), theirs["offset_mapping"][window], strict=True)
        ):
            text = CONTEXT[slice(*offsets)].strip() if source == 1 else ""
            assert spans[token] == [-1, -1] if not text else CONTEXT[slice(*spans[token])] == text


def test_every_answer_that_fits_is_found_back(tokenizer):
    processor = VTFusionProcessor(tokenizer=tokenizer, window_length=60, window_stride=25)
    words = word_spans(CONTEXT)
    answers = [(a, words[i + n][1]) for n in range(3) for i, (a, _) in enumerate(words[: -n or None])]
    answers += [(CONTEXT.index("York"), CONTEXT.index("York") + 4), (CONTEXT.index("😀"), CONTEXT.index("🎉") + 1)]
    dataset = squad(*[(QUESTION, CONTEXT, [answer]) for answer in answers])
    windows = encode(dataset, processor)
    offsets = tokenizer(CONTEXT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    found = {}
    for window in windows:
        first, last = window["start_positions"], window["end_positions"]
        assert (first == 0) == (last == 0) and first <= last
        if first > 0:
            spans = window["token_spans"]
            found.setdefault(window["row"], set()).add((spans[first][0], spans[last][1]))
    for row, (start, end) in enumerate(answers):
        covering = [(a, b) for a, b in offsets if a < end and b > start and CONTEXT[a:b].strip()]
        assert len(covering) <= 26  # it fits: two windows share 25 tokens
        ((first, last),) = found[row]
        # A token may be more than a word (only where spaces are a part of words, as for Llama).
        wanted = CONTEXT[min(a for a, _ in covering) : max(b for _, b in covering)].strip()
        assert CONTEXT[first:last] == wanted
        if tokenizer.padding_side == "right":
            assert wanted == CONTEXT[start:end]


def test_no_answer_is_token_0_which_no_answer_holds(tokenizer):
    processor = VTFusionProcessor(tokenizer=tokenizer, window_length=60, window_stride=25)
    windows = encode(squad(("?", "Paris", ["Paris"]), (QUESTION, "Paris", []), (QUESTION, "", [])), processor)
    assert len(windows) == 3
    assert all(spans[0] == [-1, -1] for spans in windows["token_spans"])
    assert windows["start_positions"][0] > 0
    assert windows["start_positions"][1:] == windows["end_positions"][1:] == [0, 0]


def test_the_first_answer_that_a_window_holds_whole():
    spans = [np.array([(-1, -1), (0, 2), (3, 5)]), np.array([(-1, -1), (3, 5), (6, 8), (8, 9)])]
    assert answer_positions(spans, []) == [(0, 0), (0, 0)]
    assert answer_positions(spans, [(0, 5)]) == [(1, 2), (0, 0)]
    assert answer_positions(spans, [(0, 8)]) == [(0, 0), (0, 0)]
    assert answer_positions(spans, [(7, 9), (3, 5)]) == [(2, 2), (2, 3)]
    assert answer_positions(spans, [(3, 5), (7, 9)]) == [(2, 2), (1, 1)]
    # characters that became no token: at the ends of an answer, and all of it
    assert answer_positions(spans, [(5, 10)]) == [(0, 0), (2, 3)]
    assert answer_positions(spans, [(2, 3)]) == [(0, 0), (0, 0)]


def test_answers_are_read_without_spaces_around():
    assert read_answers({"text": [" fox "], "answer_start": [3]}, "the fox ran", 0) == [(4, 7)]
    assert read_answers({"text": [], "answer_start": []}, "the fox", 0) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "a " * 40}, "row 1201, field `question`: its 40 tokens leave no room .* window of 30"),
        ({"question": ""}, "row 1201, field `question`: it is empty"),
        ({"question": None}, "row 1201, field `question`: expected a string, got None"),
        ({"context": None}, "row 1201, field `context`: expected a string"),
        ({"answers": None}, "row 1201, field `answers`: expected"),
        ({"answers": {"text": ["fox"], "answer_start": []}}, "row 1201, field `answers`: expected"),
        ({"answers": {"text": ["fox"], "answer_start": [1]}}, "'fox' should stand at character 1 .*, where 'he ' is"),
        ({"answers": {"text": ["fox"], "answer_start": [-3]}}, "'fox' should stand at character -3"),
        ({"answers": {"text": [" "], "answer_start": [3]}}, "' ' is blank; where there is no answer both lists"),
    ],
)
def test_bad_rows_are_named(bert, change, message):
    processor = VTFusionProcessor(tokenizer=bert, window_length=30)
    good = squad((QUESTION, "the fox", ["fox"]))[0]
    dataset = Dataset.from_list([good] * 1201 + [{**good, **change}])
    with pytest.raises(ValueError, match=message):
        encode(dataset, processor)


def test_a_question_that_just_fits(bert):
    processor = VTFusionProcessor(tokenizer=bert, window_length=8, window_stride=0)
    windows = encode(squad(("a a a a", "fox the fox", [(8, 11)])), processor)
    assert windows["length"][:] == [8, 8, 8] and windows["start_positions"][:] == [0, 0, 6]
    with pytest.raises(ValueError, match="its 5 tokens leave no room"):
        encode(squad(("a a a a a", "fox the fox", [])), processor)


def test_images_of_rows_and_columns_that_keep_their_type(bert):
    processor = VTFusionProcessor(tokenizer=bert, window_length=20, window_stride=4)
    dataset = squad(*[(QUESTION, "the fox", ["fox"])] * 1001, (QUESTION, "the fox " * 10, ["fox"]))
    keys = [None] * 1000 + [["a", "b"], ["c"]]
    windows = encode_contexts(dataset, processor, keys, num_proc=2)
    assert [keys[row] for row in windows["row"]] == windows["image_keys"][:]
    assert len(windows) > 1002 and windows["image_keys"][-1] == ["c"]
    assert windows.features["token_spans"].feature.feature.dtype == "int32"


def test_pair_first(tokenizer):
    processor = VTFusionProcessor(tokenizer=tokenizer)
    texts, questions = ["the quick fox", "Paris"], ["who?", "where is it?"]
    batch = processor(text=texts, text_pair=questions, pair_first=True, return_tensors="pt")
    theirs = tokenizer(questions, texts, padding=True, return_tensors="pt")
    assert all(torch.equal(batch[name], theirs[name]) for name in tokenizer.model_input_names)
    assert [row.text for row in batch.rows] == texts
    for other in (copy.copy(batch), pickle.loads(pickle.dumps(batch)), batch.to("cpu")):
        assert np.array_equal(other.token_spans, batch.token_spans)
    # words and labels are those of the text wherever it stands
    labelled = processor.encode_text(["fox is"], ["who?"], [[3, 4]], pair_first=True)
    read = [label for label in labelled["labels"][0] if label != -100]
    assert read == [3, 4][: len(read)] and len(read) >= 1
    with pytest.raises(ValueError, match="`pair_first` says where `text_pair` stands"):
        processor(text=texts, pair_first=True)


# ---------------------------------------------------- from the model -----------------------------------------------


def brute_force(start, end, batch, null_places, n_best, max_answer_length):
    """For each text (characters → best score) by a loop over all pairs of tokens, and its score of no answer."""
    found, nothing = [{} for _ in batch.rows], [math.inf] * len(batch.rows)
    for window, row in enumerate(batch.row_of_window):
        place = null_places[window]
        nothing[row] = min(nothing[row], float(start[window, place]) + float(end[window, place]))
        spans = batch.token_spans[window].tolist()
        for i in range(len(spans)):
            for j in range(i, min(i + max_answer_length, len(spans))):
                if place in (i, j) or spans[i][0] < 0 or spans[j][0] < 0:
                    continue
                key, score = (spans[i][0], spans[j][1]), float(start[window, i]) + float(end[window, j])
                if score > found[row].get(key, (-math.inf,))[0]:
                    found[row][key] = (score, window, i, j)
    ranked = [sorted(answers.items(), key=lambda item: -item[1][0])[:n_best] for answers in found]
    return ranked, nothing


@pytest.mark.parametrize(
    ("n_best", "max_answer_length", "pair_first"), [(20, 30, True), (3, 1, True), (500, 7, False)]
)
def test_n_best_is_that_of_a_loop_over_all_pairs(tokenizer, n_best, max_answer_length, pair_first):
    processor = VTFusionProcessor(tokenizer=tokenizer, window_length=40, window_stride=15)
    texts = [CONTEXT[:150], "Paris", "", "😀 😀 the fox"]
    batch = processor(text=texts, text_pair=[QUESTION] * 4, pair_first=pair_first, return_tensors="pt")
    generator = torch.Generator().manual_seed(0)
    start, end, gate = torch.randn(3, *batch.token_spans.shape[:2], generator=generator).unbind()
    outputs = SimpleNamespace(start_logits=start * 3, end_logits=end * 3, fusion_gate=gate)
    batch["image_mask"] = torch.tensor([[int(row != 1)] for row in batch.row_of_window])
    places = [mask.index(1) for mask in batch["attention_mask"].tolist()]
    ranked, nothing = brute_force(start * 3, end * 3, batch, places, n_best, max_answer_length)
    for allow_no_answer in (False, True):
        results = processor.post_process_question_answering(
            outputs, batch, n_best, max_answer_length, allow_no_answer=allow_no_answer
        )
        for row, (answers, expected) in enumerate(zip(results, ranked, strict=True)):
            total = sum(math.exp(score) for _, (score, *_) in expected) + allow_no_answer * math.exp(nothing[row])
            empty = [answer for answer in answers if answer["answer"] == ""]
            assert len(empty) == allow_no_answer
            if allow_no_answer:
                assert empty[0]["score"] == pytest.approx(math.exp(nothing[row]) / total)
            answers = [answer for answer in answers if answer["answer"] != ""]
            assert [(a["start"], a["end"]) for a in answers] == [key for key, _ in expected]
            for answer, ((a, b), (score, window, i, j)) in zip(answers, expected, strict=True):
                assert answer["answer"] == texts[row][a:b] == answer["answer"].strip() != ""
                assert answer["score"] == pytest.approx(math.exp(score) / total)
                wanted = 0.0 if row == 1 else float(gate[window, i : j + 1].mean())
                assert answer["gate"] == pytest.approx(wanted, abs=1e-6)


def test_pieces_of_one_character_do_not_push_out_other_answers():
    spans = np.array([(0, 1)] * 8 + [(2, 3)])
    scores, tokens = best_spans(np.r_[np.arange(8.0, 0, -1), 0.0], np.r_[np.full(8, 9.0), 0.0], spans, 2, 30)
    # all pairs of the first eight are the same answer; next comes the one that ends at the last token
    assert scores.tolist() == [17.0, 8.0] and tokens.tolist()[1] == [0, 8]
    scores, _ = best_spans(np.zeros(9), np.zeros(9), spans, 50, 30)
    assert len(scores) == 3
    nothing = best_spans(np.zeros(2), np.zeros(2), np.full((2, 2), -1), 5, 5)
    assert nothing[0].shape == (0,) and nothing[1].shape == (0, 2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_answer_beyond_token_512(tokenizer, side):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = side
    processor = VTFusionProcessor(tokenizer=tokenizer, window_length=128, window_stride=32)
    text = "the quick brown fox isn't lazy, " * 150 + "(Zürich-Oerlikon) 10,000 reasons. " + "the dog " * 40
    start = text.index("Zürich")
    answer = (start, start + len("Zürich-Oerlikon"))
    assert len(tokenizer(text[:start])["input_ids"]) > 512
    batch = processor(text=[text, "Paris!", "the fox"], text_pair=[QUESTION] * 3, pair_first=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] == 128 and len(batch["input_ids"]) > 7
    outputs = oracle(batch, [answer, (0, 5), None])
    found = processor.post_process_question_answering(outputs, batch)
    assert (found[0][0]["start"], found[0][0]["end"]) == answer and found[0][0]["answer"] == "Zürich-Oerlikon"
    assert found[1][0]["answer"] == "Paris" and found[0][0]["gate"] is None
    with_nothing = processor.post_process_question_answering(outputs, batch, allow_no_answer=True)
    assert [row[0]["answer"] for row in with_nothing] == ["Zürich-Oerlikon", "Paris", ""]


def test_no_answer_by_hand(bert):
    processor = VTFusionProcessor(tokenizer=bert, window_length=6, window_stride=0)
    # [CLS] a [SEP] new york [SEP] and [CLS] a [SEP] fox paris [SEP]
    batch = processor(text=["new york fox paris"], text_pair=["a"], pair_first=True, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 6)
    start = torch.tensor([[6.0, 99, 99, 1, 0, 99], [2.0, 99, 99, 0, 4, 99]])
    end = torch.tensor([[3.0, 99, 99, 0, 1, 99], [3.0, 99, 99, 0, 2, 99]])
    outputs = SimpleNamespace(start_logits=start, end_logits=end)

    def ask(**kwargs):
        (answers,) = processor.post_process_question_answering(outputs, batch, n_best=2, **kwargs)
        return [(answer["answer"], round(answer["score"], 6)) for answer in answers]

    # paris 6, then "new york" and "fox paris" both 2: the one before; no answer has min(9, 5) = 5
    total = math.exp(6) + math.exp(2)
    paris, york, none = ((text, math.exp(s)) for text, s in (("paris", 6), ("new york", 2), ("", 5)))
    assert ask() == [(text, round(power / total, 6)) for text, power in (paris, york)]
    total += math.exp(5)
    listed = {text: (text, round(power / total, 6)) for text, power in (paris, york, none)}
    assert ask(allow_no_answer=True) == [listed["paris"], listed[""], listed["new york"]]
    assert ask(allow_no_answer=True, null_threshold=-1.5) == [listed[""], listed["paris"], listed["new york"]]
    # more by exactly the threshold is not more
    assert ask(allow_no_answer=True, null_threshold=-1.0)[0] == listed["paris"]
    start[1, 0] = 9.0  # no answer: min(9, 12) = 9, more than 6
    assert ask(allow_no_answer=True)[0][0] == ""
    assert [text for text, _ in ask(allow_no_answer=True, null_threshold=3.5)] == ["paris", "", "new york"]


def test_no_answer_stands_behind_all_answers_that_are_as_good(bert):
    processor = VTFusionProcessor(tokenizer=bert)
    # [CLS] a [SEP] fox paris york [SEP]
    batch = processor(text=["fox paris york"], text_pair=["a"], pair_first=True, return_tensors="pt")
    start = torch.tensor([[3.0, 0, 0, 5, 4, 3, 0]])
    outputs = SimpleNamespace(start_logits=start, end_logits=torch.zeros(1, 7))
    (answers,) = processor.post_process_question_answering(outputs, batch, max_answer_length=1, allow_no_answer=True)
    assert [answer["answer"] for answer in answers] == ["fox", "paris", "york", ""]
    start[0, 0] = 3.5
    (answers,) = processor.post_process_question_answering(outputs, batch, max_answer_length=1, allow_no_answer=True)
    assert [answer["answer"] for answer in answers] == ["fox", "paris", "", "york"]
    assert answers[2]["start"] == answers[2]["end"] == 0 and answers[2]["gate"] is None


def test_settings_that_cannot_be(bert):
    processor = VTFusionProcessor(tokenizer=bert)
    batch = processor(text=["the fox"], text_pair=["a"], pair_first=True, return_tensors="pt")
    outputs = oracle(batch, [None])
    for kwargs, message in [
        ({"n_best": 0}, "`n_best` must be positive"),
        ({"max_answer_length": 0}, "`max_answer_length` must be positive"),
        ({"null_threshold": 1.0}, "`null_threshold` needs `allow_no_answer=True`"),
    ]:
        with pytest.raises(ValueError, match=message):
            processor.post_process_question_answering(outputs, batch, **kwargs)
    outputs.end_logits = outputs.end_logits[:, 1:]
    with pytest.raises(ValueError, match=r"`end_logits` has shape .* do not belong together"):
        processor.post_process_question_answering(outputs, batch)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_with_a_model_rows_with_and_without_image(name):
    tokenizer = TOKENIZERS[name]()
    processor = VTFusionProcessor(
        ViTImageProcessor(size={"height": 32, "width": 32}), tokenizer, window_length=48, window_stride=8
    )
    config = tiny_config(name)
    config.text_config.vocab_size = max(len(tokenizer), 99)
    model = VTFusionForQuestionAnswering(config).eval()
    randomize_fusion(model)
    red = Image.new("RGB", (6, 4), "red")
    batch = processor(
        text=[CONTEXT[:150], "the fox", "Paris"],
        text_pair=[QUESTION, "who?", "where?"],
        images=[[red, red], None, red],
        pair_first=True,
        return_tensors="pt",
    )
    assert len(batch["input_ids"]) > 4
    with torch.no_grad():
        results = processor.post_process_question_answering(model(**batch), batch, allow_no_answer=True)
    for answers, row, has_image in zip(results, batch.rows, (True, False, True), strict=True):
        assert sum(answer["score"] for answer in answers) == pytest.approx(1.0)
        for answer in answers:
            assert row.text[answer["start"] : answer["end"]] == answer["answer"]
            assert answer["gate"] is None if answer["answer"] == "" else (answer["gate"] > 0) == has_image
    one = processor(text="the fox", text_pair="who?", pair_first=True)  # flat lists
    outputs = model(**{key: torch.tensor([value]) for key, value in one.items()})
    assert processor.post_process_question_answering(outputs, one)[0][0]["answer"] in ("the", "fox", "the fox")


# ------------------------------------------------------- scores ----------------------------------------------------


def perfect(windows):
    """Start logits, end logits and gates that say what the windows are labelled with."""
    length = max(windows["length"])
    start, end = (np.full((len(windows), length), -100.0, dtype=np.float32) for _ in range(2))
    for logits, name in ((start, "start_positions"), (end, "end_positions")):
        logits[np.arange(len(windows)), windows[name]] = 5.0
    return start, end, np.full_like(start, 0.25)


@pytest.fixture(scope="module")
def data():
    return squad(
        (QUESTION, CONTEXT, ["New York", "York"]),
        ("Who is it?", "it is John Smith", ["John Smith"]),
        ("Who was it?", "it is John Smith", []),
        ("Who?", "", []),
    )


def test_evaluator_scores_what_is_right_and_what_is_not(tokenizer, data):
    processor = VTFusionProcessor(tokenizer=tokenizer, window_length=60, window_stride=25)
    windows = encode(data, processor).sort("length", reverse=True)
    evaluator = QuestionEvaluator(data, windows, processor, allow_no_answer=True)
    predictions = perfect(windows)
    answers = evaluator.answers(predictions)
    if tokenizer.padding_side == "right":  # words that are tokens together cannot be told apart
        assert answers == ["New York", "John Smith", "", ""]
    scores = evaluator.score(answers)
    assert scores["NoAns_exact_match"] == 1.0 and scores["NoAns_total"] == scores["HasAns_total"] == 2
    assert evaluator.score(["the York", "John", "John", ""]) == pytest.approx(
        {
            "exact_match": 2 / 4,
            "f1": (1 + 2 / 3 + 0 + 1) / 4,
            "total": 4,
            "HasAns_exact_match": 1 / 2,
            "HasAns_f1": (1 + 2 / 3) / 2,
            "HasAns_total": 2,
            "NoAns_exact_match": 1 / 2,
            "NoAns_f1": 1 / 2,
            "NoAns_total": 2,
        }
    )
    forced = QuestionEvaluator(data, windows, processor).answers(predictions)
    assert forced[2] != "" and forced[3] == ""  # an empty context has no answer anyway


def test_answers_beyond_the_first_window_are_scored_by_themselves(bert):
    far = "word " * 40 + "York"
    data = squad(
        ("Who?", far, ["York"]),  # the second window
        ("Who?", "York " + far, ["York"]),  # both
        ("Who?", "it is John Smith", ["John Smith"]),
        ("Who?", far, []),
    )
    assert data["answers"][1]["answer_start"] == [0]
    windows = encode(data, VTFusionProcessor(tokenizer=bert, window_length=30, window_stride=5)).sort("length")
    evaluator = QuestionEvaluator(data, windows, VTFusionProcessor(tokenizer=bert), allow_no_answer=True)
    scores = evaluator.score(["new York", "", "John", ""])
    assert {name: scores[name] for name in scores if name.startswith("Later_")} == {
        "Later_exact_match": 0.0,
        "Later_f1": pytest.approx(2 / 3),
        "Later_total": 1,
    }
    assert re.search(r"^later windows +0\.00 +66\.67 +1$", evaluator.report(scores), re.MULTILINE)
    whole = encode(data, VTFusionProcessor(tokenizer=bert, window_length=400, window_stride=5))
    scores = QuestionEvaluator(data, whole, VTFusionProcessor(tokenizer=bert), allow_no_answer=True).score([""] * 4)
    assert not [name for name in scores if name.startswith("Later_")]


def test_records_and_counts_by_question(bert, data, tmp_path):
    processor = VTFusionProcessor(tokenizer=bert, window_length=60, window_stride=25)
    windows = encode(data, processor)
    evaluator = QuestionEvaluator(data, windows, processor, n_best=3, allow_no_answer=True)
    others = ["York", "Smith", "it", ""]
    records = evaluator.records(perfect(windows), [["a", "b"], ["c"], None, None])
    for record, other in zip(records, others, strict=True):
        record["predicted_answer_none"] = other
    (tmp_path / "test_predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [record["id"] for record in records] == ["q0", "q1", "q2", "q3"]
    assert [record["num_images"] for record in records] == [2, 1, 0, 0]
    assert [record["answers"] for record in records] == [["New York", "York"], ["John Smith"], [], []]
    assert [record["predicted_answer"] for record in records] == ["New York", "John Smith", "", ""]
    assert [len(record["n_best"]) for record in records] == [4, 4, 4, 1]
    best = records[1]["n_best"][0]
    assert (best["answer"], best["start"], best["end"], best["gate"]) == ("John Smith", 6, 16, 0.25)
    assert {answer["gate"] for answer in records[2]["n_best"]} == {0.0, None}

    (tmp_path / "results.json").write_text(json.dumps({"test": {"true": {}, "none": {}}}))
    counts = read_answer_counts(tmp_path)
    assert counts["true"].tolist() == [[1, 1, 1]] * 4
    assert counts["none"].tolist() == [[1, 1, 1], [1, 0, pytest.approx(2 / 3)], [1, 0, 0], [1, 1, 1]]
    scores = answer_scores(np.stack([counts["none"].sum(axis=0), counts["none"][[1, 1, 3]].sum(axis=0)]))
    assert scores["F1"] == pytest.approx([(2 + 2 / 3) / 4, (1 + 4 / 3) / 3])
    assert scores["exact match"] == pytest.approx([2 / 4, 1 / 3])
    assert scores["F1"][0] == pytest.approx(evaluator.score(others)["f1"])


def test_trainer_learns_a_few_questions_by_heart(bert, tmp_path):
    names = ["new york", "paris", "smith", "the fox"]
    rows = [(f"who is {i}", f"it is {name} in 10 words", [name]) for i, name in enumerate(names)]
    data = squad(*rows, ("why", "nobody knows", []))
    processor = VTFusionProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), bert, window_length=64)
    windows = encode(data, processor)
    config = tiny_config()
    config.text_config.vocab_size = len(bert)
    evaluator = QuestionEvaluator(data, windows, processor, allow_no_answer=True)
    args = VTFusionTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        max_steps=100,
        learning_rate=5e-3,
        fusion_learning_rate=5e-3,
        per_device_train_batch_size=5,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
        disable_tqdm=True,
    )
    trainer = VTFusionTrainer(
        VTFusionForQuestionAnswering(config),
        args,
        data_collator=FusionCollator(processor, ImageStore()),
        train_dataset=windows,
        eval_dataset=windows,
        compute_metrics=lambda found: evaluator.score(evaluator.answers(found.predictions)),
    )
    trainer.train()
    assert trainer.evaluate()["eval_exact_match"] == 1.0
