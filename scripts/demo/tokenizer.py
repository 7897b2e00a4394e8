"""The demo tokenizer: a small byte-level BPE trained on the corpus, with a chat template.

Any text survives encoding and decoding, because every byte is a token and nothing is normalized.
Digits stand alone (a leading space may cling to the first), so a sum is read digit by digit.
"""

import json
import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from scripts.demo import corpus

VOCAB_SIZE = 2048
CONTEXT = 2048
BOS, EOS, PAD, END = "<|bos|>", "<|eos|>", "<|pad|>", "<|end|>"
SPECIALS: tuple[str, ...] = (BOS, EOS, PAD, "<|system|>", "<|user|>", "<|assistant|>", END)

# Roles that the model never saw speak as the user.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = message['role'] if message['role'] in ['system', 'assistant'] else 'user' %}"
    "{{ '<|' + role + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_WORDS = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"
_SAMPLE_DOCUMENTS = 60_000
_SAMPLE_LESSON = corpus.Lesson((22, 46, 15, 4, 5, 8), 1.0, 1.0)


def train(seed: int) -> Tokenizer:
    """Trains the tokenizer on a sample of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = corpus.sample(f"tokenizer/{seed}", _SAMPLE_DOCUMENTS, _SAMPLE_LESSON)
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` in Hugging Face form."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    # The template goes into the configuration too, where readers that know one file look for it.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = CHAT_TEMPLATE
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n")
