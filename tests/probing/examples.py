"""Small examples, tokenizers and models whose explanations are known."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from t3vis.probing.encoded import Encoded, from_ids
from t3vis.probing.question import Question
from t3vis.probing.targets import Target, class_target
from tests.callbacks.tiny import EOS, PAD, tiny_model, tiny_rows

CLS, MASK = 1, 3
WORDS = ("good", "bad", "film", "a", "not", "very", "<b>", "was", "it", "plot")


def word_tokenizer() -> Any:
    """One token for each of a few words, as ids 4 and up; [CLS] and [SEP] around a text."""
    special = {"[PAD]": PAD, "[CLS]": CLS, "[SEP]": EOS, "[MASK]": MASK}
    vocabulary = {**special, **{word: 4 + i for i, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", EOS), ("[CLS]", CLS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=40,
    )


def tiny_examples(n_examples: int = 5, *, seed: int = 0) -> list[Encoded]:
    """Of 3 to 12 tokens, the last one special."""
    rows = tiny_rows(n_examples, seed=seed)
    return [from_ids(row["input_ids"], [str(i) for i in row["input_ids"]], special=[EOS]) for row in rows]


def asked(
    model: Any, examples: list[Encoded], targets: list[Target] | None = None, *, mask_id: int | None = MASK
) -> Question:
    """Ask for all classes; the model is to be probed."""
    classes = class_target(range(model.config.num_labels))
    return Question(model, tuple(examples), tuple(targets or [classes] * len(examples)), mask_id=mask_id, pad_id=PAD)


def without_constants(kind: str, *, seed: int = 0, **config: Any) -> Any:
    """A tiny model all of whose biases, positions and token types are 0: the tokens are all there is."""
    model = tiny_model(kind, seed=seed, **config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or any(part in name for part in ("position_embeddings", "token_type", "wpe")):
                parameter.zero_()
    return model


def reader_of_one_token(token: int) -> Any:
    """A Llama in which class 1 depends on nothing but whether, and how often, a token stands in the text.

    Attention is uniform (its queries are 0) and copies the values; the last token is read. Only the embedding of the
    token has a part in the first direction, which is the one that the class reads.
    """
    model = tiny_model("llama", num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    layer, hidden = model.model.layers[0], model.config.hidden_size
    with torch.no_grad():
        layer.self_attn.q_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        layer.self_attn.v_proj.weight.copy_(torch.eye(hidden))
        layer.self_attn.o_proj.weight.copy_(torch.eye(hidden))
        model.model.embed_tokens.weight[:, 0] = 0
        model.model.embed_tokens.weight[token, 0] = 2
        model.score.weight.zero_()
        model.score.weight[1, 0] = 1
    return model
