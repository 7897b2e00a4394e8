"""Tokenizer and chat template of a checkpoint."""

import asyncio
import json
import threading
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Vocabulary
from transformers import AutoTokenizer

from services.common.config import ConfigError
from services.common.errors import InvalidRequest, QueueFull
from services.frontend.chat_template import ChatTemplate, load_chat_template
from services.frontend.request import NO_CHAT_TEMPLATE, ChatMessage, ChatPrompt, TextPrompt, TokenPrompt
from services.frontend.tokenizer import Tokenizer, load_tokenizer
from tests.harness.scripted_workers import eventually
from tests.harness.text_checkpoint import BOS, byte_level_tokenizer, text_checkpoint

TALK = ChatPrompt(
    (ChatMessage("user", "hello"), ChatMessage("assistant", "world <b>&</b>"), ChatMessage("user", " café\n"))
)
# What templates of real checkpoints do: whitespace control, loops with break, filters, globals, generation blocks.
TEMPLATES = {
    "loop control": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "trimmed blocks": "{{ bos_token }}\n{% for m in messages %}\n    {% if true %}\n{{ m['content'] }}\n"
    "    {% endif %}\n{% endfor %}\n",
    "tojson": "{{ messages | tojson }}{{ {'b': 1, 'a': '<é>'} | tojson(indent=2) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}{% endfor %}",
    "date": "{{ strftime_now('%Y') | length }}{{ eos_token }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "tools": "{% if tools is not none %}tools{% endif %}{% if documents %}documents{% endif %}"
    "{% if add_generation_prompt %}go{% endif %}",
}


@pytest.fixture
def tokenizer():
    """The tokenizer of the test checkpoint."""
    loaded = load_tokenizer(text_checkpoint(), threads=1, max_waiting=1)
    yield loaded
    loaded.close()


def _with_template(folder: Path, template: object) -> Path:
    """A checkpoint folder like the test one with another template."""
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    config = json.loads((text_checkpoint() / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.mark.parametrize("name", TEMPLATES)
async def test_chat_is_rendered_as_transformers_does(name: str, tmp_path: Path) -> None:
    """Text and token ids of a conversation equal those of `apply_chat_template`."""
    folder = _with_template(tmp_path, TEMPLATES[name])
    theirs = AutoTokenizer.from_pretrained(str(folder))
    messages = [{"role": message.role, "content": message.content} for message in TALK.messages]
    template = load_chat_template(folder)
    assert template is not None
    assert template.render(TALK.messages) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    ours = load_tokenizer(folder, threads=1, max_waiting=1)
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(await ours.encode(TALK)) == ids
    ours.close()


async def test_text_is_encoded_as_transformers_does(tokenizer: Tokenizer) -> None:
    """Plain text gets the special tokens of the post-processor; token ids are taken as they are."""
    theirs = AutoTokenizer.from_pretrained(str(text_checkpoint()))
    text = "hello, naïve 😀 <|user|>"
    ids = await tokenizer.encode(TextPrompt(text))
    assert list(ids) == theirs.encode(text)
    assert ids[0] == theirs.convert_tokens_to_ids(BOS)
    assert await tokenizer.encode(TokenPrompt((7, 8))) == (7, 8)
    assert await tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_template_file_wins_over_the_configuration(tmp_path: Path) -> None:
    """`chat_template.jinja` is used where both are there; a list of named templates gives its default."""
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "named"}]
    folder = _with_template(tmp_path, named)
    for want in ("named", "file"):
        template = load_chat_template(folder)
        assert template is not None
        assert template.render(TALK.messages) == want
        (folder / "chat_template.jinja").write_text("file")


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('only one turn') }}", "{{ messages[9].content.x.y }}", "{{ messages.append(1) }}",
     "{{ ''.__class__.__mro__[1].__subclasses__() }}"],
    ids=["refused", "undefined", "mutation", "escape"],
)  # fmt: skip
def test_template_errors_are_about_the_chat(template: str) -> None:
    """Whatever a template does wrong, or must not do, is INVALID_ARGUMENT for field `chat`."""
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate(template, {}).render(TALK.messages)
    assert [each.field for each in caught.value.violations] == ["chat"]


async def test_checkpoint_without_template_says_so() -> None:
    """A chat for a checkpoint without a template is refused in words that clients can recognize."""
    tokenizer = load_tokenizer(text_checkpoint(has_template=False), threads=1, max_waiting=1)
    with pytest.raises(InvalidRequest) as caught:
        await tokenizer.encode(TALK)
    assert caught.value.violations[0].description == NO_CHAT_TEMPLATE
    tokenizer.close()


async def test_stored_truncation_and_padding_are_ignored(tmp_path: Path) -> None:
    """A tokenizer.json saved with truncation or padding, as after training, must not cut or fill prompts."""
    vocabulary = Vocabulary.from_str(byte_level_tokenizer().to_str())
    vocabulary.enable_truncation(3)
    vocabulary.enable_padding(length=64)
    vocabulary.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path, threads=1, max_waiting=1)
    assert await tokenizer.decode(await tokenizer.encode(TextPrompt("hello world, the capital"))) == (
        "hello world, the capital"
    )
    assert len(await tokenizer.encode(TextPrompt("hello"))) < 8
    tokenizer.close()


def test_missing_tokenizer_is_a_configuration_error(tmp_path: Path) -> None:
    """A folder without tokenizer.json is refused at the start, with what to do."""
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path, threads=1, max_waiting=1)


async def test_waiting_texts_are_bounded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts beyond threads and queue are refused with a hint; the count returns to zero when the threads are done."""
    go_on = threading.Event()
    monkeypatch.setattr(tokenizer, "_encode", lambda prompt: go_on.wait(30) and (1,))
    calls = [asyncio.create_task(tokenizer.encode(TextPrompt("a"))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as caught:
        await tokenizer.encode(TextPrompt("a"))
    assert caught.value.retry_after_s
    calls[1].cancel()
    await asyncio.wait(calls[1:])
    assert tokenizer.stats() == {"tokenizer_calls": 2}
    go_on.set()
    assert await calls[0] == (1,)
    await eventually(lambda: tokenizer.stats() == {"tokenizer_calls": 0})
