"""Parsed sentences, and a tokenizer that knows their words; one of them is two tokens."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from t3vis.analysis.conllu import Sentence

WORDS = ("the", "dog", "chase", "##s", "cat", ".")
SENTENCE = Sentence(
    ("the", "dog", "chases", "the", "cat", "."),
    (1, 2, -1, 4, 2, 2),
    ("det", "nsubj", "root", "det", "obj", "punct"),
)
SHORT = Sentence(("dog", "chases", "cat"), (1, -1, 1), ("nsubj", "root", "obj"))


def word_pieces():
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]
    made = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=40, **special)
