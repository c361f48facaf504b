"""Tiny random causal models of transformers in folders, with tokenizers that are trained here."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

KINDS = ("llama", "gpt2", "mamba")
POSITIONS = 32


def write_tokenizer(folder: Path, whole: bool = True) -> int:
    """A byte-level BPE; `whole`: it knows every byte. Returns the number of its tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if whole else [],
        show_progress=False,
    )
    made.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog and some more words\n" * 3], trainer
    )
    made.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return int(made.get_vocab_size())


def random_network(kind: str, n_token: int, seed: int = 1) -> Any:
    """A model with random weights."""
    import torch
    import transformers as t

    torch.manual_seed(seed)
    common: dict[str, Any] = {"vocab_size": n_token, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "llama":
        return t.LlamaForCausalLM(
            t.LlamaConfig(
                **common,
                hidden_size=32,
                num_hidden_layers=2,
                intermediate_size=64,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=POSITIONS,
            )
        )
    if kind == "gpt2":
        return t.GPT2LMHeadModel(
            t.GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS)
        )
    return t.MambaForCausalLM(t.MambaConfig(**common, hidden_size=32, num_hidden_layers=2, state_size=4))


def write_model(folder: Path, kind: str, whole: bool = True, seed: int = 1) -> Path:
    """A folder as `save_pretrained` writes it."""
    from lmcodec.lm.hugging_face.loading import quiet

    folder.mkdir(parents=True)
    n_token = write_tokenizer(folder, whole)
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        random_network(kind, n_token, seed).save_pretrained(folder)
    return folder
