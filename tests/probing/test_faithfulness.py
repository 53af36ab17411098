"""Which explanation to believe, on a model of which it is known which token matters."""

import numpy as np
import pytest
import torch

from t3vis.probing.encoded import from_ids
from t3vis.probing.faithfulness import Faithfulness, faithfulness
from t3vis.probing.saliency import METHODS
from t3vis.probing.targets import class_target
from tests.callbacks.tiny import tiny_model
from tests.probing.examples import reader_of_one_token, tiny_examples, word_tokenizer

TOKEN = 9


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(12):
        ids = rng.integers(10, 40, 10)
        ids[rng.integers(10)] = TOKEN
        found.append(from_ids(ids.tolist(), [str(i) for i in ids]))
    return found


def test_the_method_that_finds_the_token_wins(examples):
    def wrong(question):
        return -METHODS["cp_lrp"](question).values

    found = faithfulness(
        reader_of_one_token(TOKEN),
        examples,
        [class_target([1])] * len(examples),
        methods={"cp_lrp": METHODS["cp_lrp"], "wrong": wrong},
        fractions=(0.1, 0.3),
    )
    assert found.best == "cp_lrp"
    by_name = dict(zip(found.methods, found.comprehensiveness.mean(1), strict=True))
    kept = dict(zip(found.methods, found.sufficiency.mean(1), strict=True))
    assert by_name["cp_lrp"] > by_name["random"] > by_name["wrong"]
    assert kept["cp_lrp"] < kept["random"] < kept["wrong"]
    rows = found.rows()
    assert [row["method"] for row in rows] == ["cp_lrp", "random", "wrong"]
    assert rows[0]["behind the best"] == ""


def test_probabilities_are_those_of_the_masked_texts():
    model, tokenizer = tiny_model("bert").eval(), word_tokenizer()
    examples = tiny_examples(4)
    found = faithfulness(
        model,
        examples,
        [class_target([2])] * 4,
        methods={"in order": lambda q: -torch.arange(q.embeddings.shape[1]).expand(len(q.examples), 1, -1).float()},
        tokenizer=tokenizer,
        fractions=(0.5,),
    )
    for i, example in enumerate(examples):
        n_taken = max(round(0.5 * (len(example) - 1)), 1)
        for probs, places in ((found.removed, slice(0, n_taken)), (found.kept, slice(n_taken, -1))):
            ids = example.inputs["input_ids"].clone()
            ids[places] = tokenizer.mask_token_id
            with torch.no_grad():
                expected = model(ids[None]).logits[0].softmax(-1)[2]
            np.testing.assert_allclose(probs[0, 0, i], expected, rtol=1e-4)


def test_batches_change_nothing():
    args = tiny_model("bert").double(), tiny_examples(6), [class_target([0])] * 6
    methods = {"attnlrp": METHODS["attnlrp"]}
    one, other = (faithfulness(*args, methods=methods, batch_size=size) for size in (2, 6))
    np.testing.assert_allclose(one.removed, other.removed, rtol=1e-6)
    np.testing.assert_allclose(one.kept, other.kept, rtol=1e-6)


def test_intervals_are_of_the_same_resampled_examples():
    """Two methods whose difference is the same on every example can be told apart however much examples differ."""
    probs = np.linspace(0.1, 0.9, 20)
    removed = np.stack([probs * 0.5, probs * 0.5 + 0.01])[:, None]
    rows = Faithfulness(("a", "b"), (0.5,), probs, removed, removed).rows()
    assert rows[1]["behind the best"] == "0.010 [0.010, 0.010]"
    mean, width = (float(part) for part in rows[0]["comprehensiveness"].split(" ± "))
    assert mean == pytest.approx(0.25, abs=5e-4)
    assert width == pytest.approx(1.96 * (probs * 0.5).std() / np.sqrt(20), abs=0.005)
