"""The demo corpus: the same text for the same seed, and nothing that is asked later is taught."""

import itertools
import json
import pathlib
import random
import re

import pytest

pytest.importorskip("transformers", reason="the demo tokenizer is saved through transformers")

from scripts.demo import capitals, corpus, exam, recall, rows, sums, tokenizer
from scripts.demo.countries import CAPITALS
from scripts.demo.document import SYSTEMS, Draft, asked, turn
from scripts.demo.words import KEYS, VALUES

CHECKPOINT = pathlib.Path(__file__).parents[2] / "models" / "demo"
SAMPLE = 20_000
LAST = corpus.lesson(corpus.LAST_LESSON)


@pytest.fixture(scope="module")
def taught() -> list[str]:
    """The texts of a stretch of the corpus from every part of the training."""
    points = (0, 800, 2500, corpus.LAST_LESSON)
    return [
        document.text
        for step in points
        for document in corpus.sample(f"test/{step}", SAMPLE // len(points), corpus.lesson(step))
    ]


@pytest.fixture(scope="module")
def vocabulary() -> tokenizer.Tokenizer:
    """The demo tokenizer, trained for the test."""
    return tokenizer.train(seed=1)


def test_the_same_seed_gives_the_same_text() -> None:
    """The training text follows from its seed, so the checkpoint can be made again."""
    first = [document.text for document in corpus.sample("a", 200, LAST)]
    assert first == [document.text for document in corpus.sample("a", 200, LAST)]
    assert first != [document.text for document in corpus.sample("b", 200, LAST)]


def test_every_skill_is_taught_at_every_point() -> None:
    """No part of the training leaves a skill out."""
    for step in (0, 1500, corpus.LAST_LESSON):
        assert {document.skill for document in corpus.sample("s", 2000, corpus.lesson(step))} == set(corpus.SKILLS)


def test_held_out_capitals_are_taught_in_other_words_only() -> None:
    """A held-out phrasing of a country is never taught, but other phrasings of it are."""
    trained, held_out = capitals.split()
    assert not set(trained) & set(held_out)
    for country in CAPITALS:
        hidden = [phrasing for name, phrasing in held_out if name == country]
        assert len(hidden) == capitals.HELD_OUT_PER_COUNTRY
    for phrasing in capitals.PHRASINGS:
        assert any(phrasing == used for _, used in trained)


def test_no_held_out_capital_question_occurs_in_training_text(taught: list[str]) -> None:
    """The exam asks for capitals in sentences that training never showed."""
    prompts = {capitals.prompt(item) for item in capitals.split()[1]}
    prompts |= {prompt.removeprefix("<|user|>") for prompt in prompts}
    assert not [text for text in taught if any(text.startswith(prompt) for prompt in prompts)]


def test_held_out_sums_are_about_a_tenth_and_closed_under_exchange() -> None:
    """A sum is held out together with its mirror image, and about one in ten is."""
    trained, held_out = sums.split()
    assert not set(trained) & set(held_out)
    assert len(trained) + len(held_out) == 100 * 100
    assert 0.08 < len(held_out) / (90 * 90) < 0.12
    assert all((b, a) in set(held_out) and a >= 10 and b >= 10 for a, b in held_out)


def test_no_held_out_sum_occurs_in_training_text(taught: list[str]) -> None:
    """The exam asks for sums that training never showed."""
    held_out = set(sums.split()[1])
    written = re.compile(r"(\d+) (?:\+|plus|and) (\d+)")
    found = [(int(a), int(b)) for text in taught for a, b in written.findall(text)]
    assert len(found) > 1000
    assert not held_out & set(found)


def test_exam_items_do_not_occur_in_training_text(taught: list[str]) -> None:
    """But for small talk, no exam question with its answer stands in the training text."""
    known = set(taught)
    for paper in exam.PAPERS:
        if paper == "smalltalk":  # its questions are few and are meant to be known
            continue
        for item in exam.items(paper, 40):
            assert not any(
                text in known for text in (item.prompt + item.answer + mark for mark in ("<|end|>", "<|eos|>"))
            )


def test_an_exam_asks_the_same_distinct_items_every_time() -> None:
    """Two exams ask the same questions, and none twice."""
    for paper in exam.PAPERS:
        asked_first = exam.items(paper, 20)
        assert asked_first == exam.items(paper, 20)
        assert len({item.prompt for item in asked_first}) == len(asked_first)


def test_the_answer_to_a_recall_question_stands_once_in_the_notes() -> None:
    """A recall question has one answer, and it can only come out of its own notes."""
    for item in exam.items("recall_20_words", 20):
        key = item.prompt.rsplit("- ", 1)[1].removesuffix(" is")
        assert item.prompt.count(f"- {key} is{item.answer}\n") == 1
        assert item.prompt.count(f"- {key} is") == 2


def test_keys_values_and_countries_are_distinct() -> None:
    """No word means two things."""
    for words in (KEYS, VALUES, tuple(CAPITALS)):
        assert len(set(words)) == len(words)
    assert not set(KEYS) & set(VALUES)


def test_answers_weigh_more_than_prompts(vocabulary: tokenizer.Tokenizer) -> None:
    """Training is about what the model should say, not about what it is asked."""
    document = Draft("sums", base=0.1).add("4 + 5 =").answer(" 9<|eos|>").document()
    ids, weights = rows.encode(vocabulary, document)
    assert weights == [0.0, 0.1, 0.1, 0.1, 0.1, 1.0, 1.0]
    assert vocabulary.decode(ids[1:], skip_special_tokens=False) == document.text


def test_batches_follow_from_the_seed_and_fill_their_rows(vocabulary: tokenizer.Tokenizer) -> None:
    """Batches are repeatable and waste no room."""
    drawn = [rows.batch(vocabulary, random.Random("step"), 3000, 2048) for _ in range(2)]
    assert (drawn[0].ids == drawn[1].ids).all()
    assert drawn[0].ids.size == 2048
    assert (drawn[0].ids[:, 0] == vocabulary.token_to_id(tokenizer.BOS)).all()


def test_prompts_end_where_a_token_ends(vocabulary: tokenizer.Tokenizer) -> None:
    """A prompt is tokenized alike alone and with its answer behind it."""
    for paper in exam.PAPERS:
        for item in exam.items(paper, 10):
            whole = vocabulary.encode(item.prompt + item.answer).ids
            prompt = vocabulary.encode(item.prompt).ids
            assert whole[: len(prompt)] == prompt


def test_keys_and_values_are_one_token_each(vocabulary: tokenizer.Tokenizer) -> None:
    """Recall asks for one token, so that it measures memory and not spelling."""
    for word in itertools.chain(KEYS, VALUES):
        assert len(vocabulary.encode(f" {word}", add_special_tokens=False).ids) == 1


def test_any_text_survives_the_tokenizer(vocabulary: tokenizer.Tokenizer) -> None:
    """Whatever text goes in comes out again."""
    text = "h\u00e9llo \u2713\n\n  x\t1 2\x00 \U0001f600 end  "
    assert vocabulary.decode(vocabulary.encode(text, add_special_tokens=False).ids) == text


def test_the_chat_template_writes_what_the_corpus_writes(vocabulary: tokenizer.Tokenizer, tmp_path) -> None:
    """A chat at serving time is spelled as in training."""
    from transformers import AutoTokenizer

    tokenizer.save(vocabulary, tmp_path)
    messages = [
        {"role": "system", "content": SYSTEMS[0]},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Who are you?"},
    ]
    written = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert written == tokenizer.BOS + turn("system", SYSTEMS[0]) + asked("Hello", "Hello!", "Who are you?")


def test_long_recall_documents_fit_their_room(vocabulary: tokenizer.Tokenizer) -> None:
    """Long recall documents use the room that they are given, and nearly all fit it."""
    rng = random.Random("room")
    lengths = [len(vocabulary.encode(recall.document(rng, 1024, 1.0, 1.0).text).ids) for _ in range(60)]
    assert max(lengths) > 600
    assert sum(length <= 1024 for length in lengths) > 50


def test_the_shipped_tokenizer_is_the_one_the_script_makes(vocabulary: tokenizer.Tokenizer) -> None:
    """The tokenizer in the repository can be made again from the scripts."""
    shipped = tokenizer.Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    assert json.loads(shipped.to_str())["model"] == json.loads(vocabulary.to_str())["model"]


def test_the_shipped_checkpoint_is_small_and_stops_at_both_marks(vocabulary: tokenizer.Tokenizer) -> None:
    """The checkpoint in the repository keeps its size limit and ends at both end marks."""
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 12_000_000
    marks = [vocabulary.token_to_id(mark) for mark in (tokenizer.EOS, tokenizer.END)]
    assert json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"] == marks
