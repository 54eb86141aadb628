"""A model directory without weights: what a frontend needs to turn text into tokens and back.

Runs with the interpreter of the Dynamo environment, which has `tokenizers`:
`python model_dir.py FOLDER`. The tokenizer is trained here on made-up words, so that nothing is
downloaded; its numbers of tokens per word mean nothing.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from itertools import product
from pathlib import Path

VOCABULARY = 2048
SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
CONTEXT_TOKENS = 131_072
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def words() -> list[str]:
    """Made-up words of two and three syllables."""
    syllables = [a + b for a, b in product("bdfgklmnprstvw", "aeiou")]
    pairs = [a + b for a, b in product(syllables[:40], syllables[30:])]
    return pairs + [a + b + a for a, b in product(syllables[::7], syllables[::5])]


def make(folder: Path) -> None:
    """Write the files of a small llama; complete only once `tokenizer.json` is there."""
    library = import_module("tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE(unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(words())], trainer)
    size = tokenizer.get_vocab_size()
    documents = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "vocab_size": size,
            "max_position_embeddings": CONTEXT_TOKENS,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "rms_norm_eps": 1e-5,
            "torch_dtype": "bfloat16",
        },
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[1],
            "eos_token": SPECIAL[2],
            "unk_token": SPECIAL[0],
            "model_max_length": CONTEXT_TOKENS,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n")
    partial = folder / "tokenizer.partial"
    tokenizer.save(str(partial))
    partial.replace(folder / "tokenizer.json")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
