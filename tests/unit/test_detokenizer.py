"""Text from tokens that come one by one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from services.common.sampling import SamplingParams
from services.common.types import ChoiceTokens, FinishReason, Token
from services.frontend.detokenizer import Detokenizer
from services.frontend.output_text import ChoiceText, OutputText
from services.frontend.request import Delta
from tests.harness.text_checkpoint import byte_level_tokenizer, word_tokenizer

SPECIAL = {0, 1, 2, 3}
EOS = 1
BROKEN = "\ufffd"
TOKENIZERS = {"byte level": byte_level_tokenizer, "words": word_tokenizer}
_TEXT = st.text(alphabet=st.sampled_from([*"helo wrd,.\n", "é", "€", "日", "😀", "👩", "\u200d", "👧"]), max_size=30)

both = pytest.mark.parametrize("name", TOKENIZERS)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids without special tokens."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def pieces_of(tokenizer: Tokenizer, ids: list[int], context: list[int] | None = None) -> list[str]:
    """What each token gives, and the rest at the end."""
    detokenizer = Detokenizer(tokenizer, SPECIAL, context or [])
    return [*(detokenizer.feed(token) for token in ids), detokenizer.flush()]


@both
@given(text=_TEXT)
@settings(max_examples=150)
def test_pieces_add_up_to_the_full_decode(name: str, text: str) -> None:
    """Token by token or all at once: the same text; a character that spans tokens never shows as broken."""
    tokenizer = TOKENIZERS[name]()
    ids = ids_of(tokenizer, text)
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert not any(BROKEN in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 399), max_size=40))
@settings(max_examples=150)
def test_any_tokens_add_up_to_the_full_decode(ids: list[int]) -> None:
    """Also for tokens that no text gives, as a random model emits them: nothing is lost and nothing repeated."""
    tokenizer = byte_level_tokenizer()
    full = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(pieces_of(tokenizer, ids)).replace(BROKEN, "") == full.replace(BROKEN, "")


def test_incomplete_bytes_are_flushed_at_the_end() -> None:
    """Output that ends inside a character shows what there is, broken, instead of dropping it."""
    tokenizer = byte_level_tokenizer()
    ids = ids_of(tokenizer, "ok 👩")[:-1]
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert BROKEN not in "".join(pieces[:-1])
    assert pieces[-1].endswith(BROKEN)


def test_special_tokens_have_no_text() -> None:
    """Special tokens between and inside characters change nothing."""
    tokenizer = byte_level_tokenizer()
    ids = ids_of(tokenizer, "a 😀 b")
    mixed = [each for token in ids for each in (EOS, token, 2)]
    assert "".join(pieces_of(tokenizer, mixed)) == "a 😀 b"


def test_leading_space_follows_the_prompt() -> None:
    """A tokenizer that keeps a word's space in the word: it shows after words, and not at the start of a turn."""
    tokenizer = word_tokenizer()
    prompt, answer = ids_of(tokenizer, "the capital of France is"), ids_of(tokenizer, "Paris")
    assert "".join(pieces_of(tokenizer, answer, prompt)) == " Paris"
    assert "".join(pieces_of(tokenizer, answer, [*prompt, 3])) == "Paris"


def test_character_begun_by_the_prompt_is_completed() -> None:
    """A prompt that ends inside a character: the output begins with the whole character."""
    tokenizer = byte_level_tokenizer()
    ids = ids_of(tokenizer, "x👩")
    assert "".join(pieces_of(tokenizer, ids[-1:], ids[:-1])) == "👩"


def test_bytes_that_are_no_text_are_shown_after_a_while() -> None:
    """A long run of tokens that never becomes text is not held for ever, and what follows is right."""
    tokenizer = byte_level_tokenizer()
    stray = ids_of(tokenizer, "👩")[1]
    pieces = pieces_of(tokenizer, [stray] * 40 + ids_of(tokenizer, " hello"))
    assert any(BROKEN in piece for piece in pieces[:20])
    assert "".join(pieces).endswith(" hello")


def choice(tokens: list[int], start: int = 0, finish: FinishReason | None = None) -> ChoiceTokens:
    """Tokens of choice 0 from index `start` on."""
    return ChoiceTokens(0, tuple(Token(token, start + place) for place, token in enumerate(tokens)), finish)


def run(text: str, groups: list[int], **sampling: object) -> list[Delta]:
    """Deltas of a text whose tokens come in groups of these sizes."""
    tokenizer = byte_level_tokenizer()
    ids = ids_of(tokenizer, text)
    out = ChoiceText(0, Detokenizer(tokenizer, SPECIAL), SamplingParams(**sampling))  # type: ignore[arg-type]
    deltas: list[Delta | None] = []
    start = 0
    while start < len(ids):
        end = start + groups[len(deltas) % len(groups)]
        finish = FinishReason.LENGTH if end >= len(ids) else None
        deltas.append(out.add(choice(ids[start:end], start, finish)))
        start = end
    return [delta for delta in deltas if delta is not None]


@given(
    text=_TEXT,
    groups=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    stops=st.lists(st.text(alphabet="helo wrd€", min_size=1, max_size=4), max_size=3),
)
@settings(max_examples=150)
def test_output_is_cut_at_the_first_stop_string(text: str, groups: list[int], stops: list[str]) -> None:
    """However tokens arrive, the text shown is the full text up to the first stop string, and the end says which."""
    deltas = run(text, groups, stop=tuple(stops))
    shown = "".join(delta.text for delta in deltas)
    ends = [(place, stop) for place in range(len(text) + 1) for stop in stops if text[:place].endswith(stop)]
    if not ends:
        assert shown == text
        assert [delta.finish for delta in deltas if delta.finish] == [FinishReason.LENGTH] * bool(deltas)
        return
    first = min(place for place, _ in ends)
    longest = max((stop for place, stop in ends if place == first), key=len)
    assert shown == text[: first - len(longest)]
    assert (deltas[-1].finish, deltas[-1].stop_match) == (FinishReason.STOP, longest)


def test_stop_string_counts_only_after_min_tokens() -> None:
    """Tokens that must be emitted pass; the same string later ends the output."""
    text = "lo lo lo"
    assert "".join(delta.text for delta in run(text, [1], stop=("lo",))) == ""
    late = run(text, [1], stop=("lo",), min_tokens=len(ids_of(byte_level_tokenizer(), "lo lo")))
    assert "".join(delta.text for delta in late) == "lo lo "
    assert late[-1].stop_match == "lo"


def test_tokens_of_a_cut_choice_end_with_the_stop_string() -> None:
    """The delta holds the tokens up to the one that completed the stop string; what comes later is dropped."""
    tokenizer = byte_level_tokenizer()
    ids = ids_of(tokenizer, "hello world, the end")
    text = OutputText(SamplingParams(stop=("wor",)), lambda: Detokenizer(tokenizer, SPECIAL))
    deltas = text.add([choice(ids)])
    used = [token.id for token in deltas[0].tokens]
    assert "wor" in tokenizer.decode(used)
    assert "wor" not in tokenizer.decode(used[:-1])
    assert text.is_finished
    assert text.num_tokens == len(used)
    assert text.add([choice([5], len(ids))]) == ()
