"""Settings of the tests that train, and a tokenizer."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

torch.set_num_threads(1)  # tiny models: more threads only get in each other's way


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Words ``w3`` to ``w59`` are the token ids 3 to 59."""
    words = {"[PAD]": 0, "[UNK]": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 60)}}
    own = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    own.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>")
