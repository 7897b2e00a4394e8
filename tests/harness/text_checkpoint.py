"""A checkpoint with a tokenizer and a chat template and no weights: all that a frontend reads."""

import functools
import json
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, USER, ASSISTANT = "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"
SPECIALS = [BOS, EOS, USER, ASSISTANT]
VOCAB = 400
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}\n"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_CORPUS = ["hello world, the capital of France is Paris. ", "naïve café, über 10 000 €, 日本語 😀 text "] * 20


@functools.cache
def byte_level_tokenizer() -> Tokenizer:
    """A byte-level BPE with a beginning-of-text token; any text survives it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
    )
    return tokenizer


@functools.cache
def word_tokenizer() -> Tokenizer:
    """A tokenizer that writes a word's leading space into the word and falls back to bytes, as SentencePiece does."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    replace = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence(
        [replace, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=350, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(["hello world the capital of France is Paris"] * 20, trainer)
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    return Tokenizer.from_str(json.dumps(content))


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="text-checkpoints-")


@functools.cache
def text_checkpoint(*, has_template: bool = True) -> Path:
    """Directory of the checkpoint, named `text` or `text-raw`."""
    folder = Path(_root().name) / ("text" if has_template else "text-raw")
    folder.mkdir()
    tokenizer = byte_level_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 256, "architectures": ["None"]}
    (folder / "config.json").write_text(json.dumps(config))
    names = {"bos_token": BOS, "eos_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"}
    if has_template:
        names["chat_template"] = CHAT_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder
