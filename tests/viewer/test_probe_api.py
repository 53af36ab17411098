"""What the model says over HTTP: the same as ``t3vis.probing`` says when it is called, and clear words if it cannot."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t3vis import open_run
from t3vis.analyze_heads import analyzed_heads, recorded_heads
from t3vis.checkpointed import pass_with_checkpoint
from t3vis.errors import ProbingError
from t3vis.probing.attention import attention_weights
from t3vis.probing.encoded import encoded, stacked
from t3vis.probing.gating import heads_of
from t3vis.probing.model import example_inputs, load_model
from t3vis.probing.pruning import effect, effect_on_example
from t3vis.probing.saliency import explain
from t3vis.recorded_example import tokenizer_of
from t3vis.viewer.attentions import SIDE, Attentions
from t3vis.viewer.models import MOST_HELD, Models
from tests.viewer.asked import N_EXAMPLES, NAMES
from tests.viewer.conftest import Answer, Served

PRUNED = [(0, 1), (1, 2)]


@pytest.fixture(scope="module")
def split(asked):
    return open_run(asked).train


@pytest.fixture(scope="module")
def folders(split) -> list[Path]:
    return [pass_with_checkpoint(split, index)[1].path for index in range(2)]


@pytest.fixture(scope="module")
def models(folders):
    return [load_model(folder) for folder in folders]


@pytest.fixture(scope="module")
def tokenizer(folders):
    return tokenizer_of(folders[0])


def post(served: Served, **what: Any) -> Answer:
    return served.ask("/api/v1/probe", "POST", json.dumps(what).encode(), content_type="application/json")


def said(served: Served, **what: Any) -> Any:
    answer = post(served, **what)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def numbers(served: Served, **what: Any) -> tuple[dict[str, Any], np.ndarray]:
    answer = post(served, **what)
    assert answer.status == 200, answer.body
    start = 4 + int.from_bytes(answer.body[:4], "little")
    head = json.loads(answer.body[4:start])
    assert start % 4 == 0
    return head, np.frombuffer(answer.body[start:], {"u1": "u1", "f4": "<f4"}[head["dtype"]])


def weights_of(model: Any, tokenizer: Any, text: str) -> np.ndarray:
    batch = stacked([encoded(tokenizer, text)], pad_id=0)
    return np.stack([layer.weights[0] for layer in attention_weights(model, batch)])


def test_attention_of_all_heads_of_one_and_of_one_token(asked_served, split, models, tokenizer):
    weights = weights_of(models[1], tokenizer, split.text["text"][7])
    head, pictures = numbers(asked_served, kind="attention", id=7)
    assert head["tokens"] == tokenizer.convert_ids_to_tokens(split.token_ids[7].tolist())
    shapes = [layer["shape"] for layer in head["layers"]]
    assert shapes == [list(layer.shape) for layer in weights]
    greatest = np.array([layer["greatest"] for layer in head["layers"]])
    np.testing.assert_allclose(greatest, weights.max((2, 3)), rtol=1e-6)
    shown = pictures.reshape(weights.shape) / 255 * greatest[..., None, None]
    assert np.abs(shown - weights).max() <= 0.5 / 255 + 1e-6
    one, values = numbers(asked_served, kind="attention", id=7, layer=1, head=2)
    assert one["shape"] == list(weights.shape[2:])
    np.testing.assert_allclose(values.reshape(one["shape"]), weights[1, 2], atol=5e-4)
    row, values = numbers(asked_served, kind="attention", id=7, layer=1, head=2, token=3)
    assert row["shape"] == [weights.shape[3]]
    np.testing.assert_allclose(values, weights[1, 2, 3], atol=5e-4)
    _, first = numbers(asked_served, kind="attention", id=7, layer=1, head=2, epoch=0)
    expected = weights_of(models[0], tokenizer, split.text["text"][7])[1, 2]
    np.testing.assert_allclose(first.reshape(expected.shape), expected, atol=5e-4)


def test_of_a_long_text_each_cell_of_a_picture_is_the_greatest_weight_there(split):
    loaded = Models(None, trust_remote_code=False).of(split, None)
    long = encoded(loaded.tokenizer, " ".join(["good film"] * 100), max_length=SIDE * 3 + 7)
    model = loaded.model
    model.bert.embeddings.position_embeddings = torch.nn.Embedding(len(long), model.config.hidden_size)
    model.bert.embeddings.register_buffer("position_ids", torch.arange(len(long))[None])
    model.bert.embeddings.register_buffer("token_type_ids", torch.zeros(1, len(long), dtype=torch.long))
    layers = Attentions().of(loaded, long, ())
    n = len(long)
    assert layers[0].pictures.shape[1:] == (SIDE, SIDE)
    parts = [slice(i * n // SIDE, -(-(i + 1) * n // SIDE)) for i in range(SIDE)]
    for layer in layers:
        whole = layer.weights.float().numpy()
        expected = np.array([[whole[:, rows, columns].max((1, 2)) for columns in parts] for rows in parts])
        shown = layer.pictures / 255 * layer.greatest[:, None, None]
        assert np.abs(shown - expected.transpose(2, 0, 1)).max() <= layer.greatest.max() / 255 + 1e-3


def test_a_prediction_of_the_run_and_of_a_text_of_ones_own(asked_served, split, models, tokenizer):
    text = split.text["text"][4]
    with torch.no_grad():
        expected = models[1](**tokenizer(text, return_tensors="pt")).logits[0]
    found = said(asked_served, kind="predict", id=4)
    assert [choice["name"] for choice in found["choices"]] == list(NAMES)
    np.testing.assert_allclose([choice["logit"] for choice in found["choices"]], expected, atol=1e-5)
    np.testing.assert_allclose([choice["prob"] for choice in found["choices"]], expected.softmax(0), atol=1e-6)
    label = int(split.labels[4])
    assert found["loss"] == pytest.approx(float(-expected.log_softmax(0)[label]), abs=1e-5)
    own = said(asked_served, kind="predict", text=["it was not a good film"])
    with torch.no_grad():
        expected = models[1](**tokenizer("it was not a good film", return_tensors="pt")).logits[0]
    np.testing.assert_allclose([choice["logit"] for choice in own["choices"]], expected, atol=1e-5)
    assert own["loss"] is None
    assert own["tokens"] == ["[CLS]", *["it", "was", "not", "a", "good", "film"], "[SEP]"]


@pytest.mark.parametrize("method", ["cp_lrp", "integrated_gradients", "occlusion", "gradient_norm"])
def test_saliency_by_a_method_of_each_class(asked_served, split, models, tokenizer, method):
    for number in range(len(NAMES)):
        found = said(asked_served, kind="saliency", id=9, method=method, **{"class": number})
        expected = explain(models[1], tokenizer, split.text["text"][9], method=method, classes=[number])
        np.testing.assert_allclose(found["values"], expected.values[0], atol=1e-5)
        assert found["name"] == NAMES[number]
        assert found["number"] == pytest.approx(float(expected.numbers[0]), abs=1e-5)
        assert found["is_signed"] == (method != "gradient_norm")
    by_default = said(asked_served, kind="saliency", id=9, method=method)
    expected = explain(models[1], tokenizer, split.text["text"][9], method=method)
    assert by_default["class"] == expected.target[0].index


def test_pruned_against_full_prediction(asked_served, split, models, tokenizer):
    heads = heads_of(models[1], example_inputs(models[1]))
    row = {**encoded(tokenizer, split.text["text"][5]).inputs, "labels": int(split.labels[5])}
    whole, without = effect_on_example(heads, row, PRUNED)
    found = said(asked_served, kind="prune", id=5, pruned=PRUNED)
    for shown, expected in ((found["whole"], whole), (found["pruned"], without)):
        np.testing.assert_allclose([choice["logit"] for choice in shown["choices"]], expected["logits"][0], atol=1e-5)
        assert shown["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert found["divergence"] > 0
    assert said(asked_served, kind="prune", id=5, pruned=[])["divergence"] == pytest.approx(0, abs=1e-6)


def test_what_pruning_does_to_the_metric_of_a_selection(asked_served, split, models, tokenizer):
    ids = list(range(3, 45, 2))
    heads = heads_of(models[1], example_inputs(models[1]))
    rows = [{**encoded(tokenizer, split.text["text"][i]).inputs, "labels": int(split.labels[i])} for i in ids]
    expected = effect(heads, rows, PRUNED)
    found = said(asked_served, kind="metric", ids=ids, pruned=PRUNED)
    assert (found["n"], found["n_selected"]) == (len(ids), len(ids))
    for name in ("loss", "score"):
        assert found[name]["whole"] == pytest.approx(getattr(expected, name).mean(), abs=1e-5)
        assert found[name]["without"] == pytest.approx(getattr(expected, f"{name}_without").mean(), abs=1e-5)
        assert found[name]["low"] <= found[name]["change"] <= found[name]["high"]
    assert found["divergence"] == pytest.approx(expected.divergence.mean(), abs=1e-5)
    assert found["worse"] == (expected.score_without < expected.score).sum()


def test_importance_of_heads_recorded_and_of_the_model(asked_served, split, asked):
    run = open_run(asked)
    recorded = recorded_heads(run, split)[1].scores["gate"]
    found = json.loads(asked_served.ask("/api/v1/splits/train/heads?epoch=1").body)
    (measure,) = found["measures"]
    assert found["attention"] == ["self", "self"]
    assert (measure["name"], measure["mode"], measure["n_examples"]) == ("recorded", "train", N_EXAMPLES)
    np.testing.assert_allclose(measure["value"], recorded.value)
    few = json.loads(asked_served.ask("/api/v1/splits/train/heads?epoch=1&ids=3,5").body)["measures"][0]
    np.testing.assert_allclose(few["value"], np.abs(split.head_gradients[1][:, [3, 5]]).mean(1), rtol=1e-6)
    one = json.loads(asked_served.ask("/api/v1/splits/train/heads?epoch=1&ids=3").body)["measures"][0]
    np.testing.assert_allclose(one["value"], split.head_gradients[1][:, 3], rtol=1e-6)
    computed = analyzed_heads(run, split, pass_index=1)
    shown = said(asked_served, kind="importance", ids=list(range(N_EXAMPLES)), epoch=1)
    np.testing.assert_allclose(shown["value"], computed.scores["gate"].value, rtol=1e-3)
    kept = json.loads(asked_served.ask("/api/v1/splits/train/heads?epoch=1").body)["measures"]
    assert [measure["name"] for measure in kept] == [
        "recorded", "gate", "removal", "loss_change", "divergence", "score_change",
    ]  # fmt: skip
    np.testing.assert_allclose(kept[3]["value"], computed.scores["loss_change"].value)


def test_what_heads_attend_to_is_kept(asked_served):
    unknown = json.loads(asked_served.ask("/api/v1/splits/train/heads?epoch=0&kind=pattern").body)
    assert unknown == {"epoch": 0, "found": None}
    found = said(asked_served, kind="patterns", epoch=0)
    assert [[bool(several) for several in layer] for layer in found["names"]] == [[True] * 4] * 2
    assert len(found["strongest"][0][0]) == 3
    kept = json.loads(asked_served.ask("/api/v1/splits/train/heads?epoch=0&kind=pattern").body)
    assert kept["found"] == found


@pytest.mark.parametrize(
    ("what", "status", "message"),
    [
        ({"kind": "train"}, 400, "expected one of attention, saliency"),
        ({"kind": "predict"}, 400, "needs either id"),
        ({"kind": "predict", "id": 1, "text": ["a"]}, 400, "needs either id"),
        ({"kind": "predict", "id": 1_000_000}, 404, f"train has no example 1000000; it has {N_EXAMPLES}"),
        ({"kind": "predict", "id": 1, "split": "test"}, 404, "holds no split 'test'; it holds: train"),
        ({"kind": "predict", "id": "1"}, 400, "id is '1'; expected int"),
        ({"kind": "predict", "id": True}, 400, "id is True; expected int"),
        ({"kind": "predict", "id": 1, "file": "/etc/passwd"}, 400, "there is no field 'file'"),
        ({"kind": "predict", "id": 1, "epoch": 9}, 422, "no checkpoint of pass 9"),
        ({"kind": "saliency", "id": 1, "method": "guess"}, 400, "expected one of cp_lrp"),
        ({"kind": "saliency", "id": 1, "class": 7}, 422, "3 columns, none at"),
        ({"kind": "attention", "id": 1, "layer": 1}, 400, "layer and head go together"),
        ({"kind": "attention", "id": 1, "layer": 9, "head": 0}, 422, "there is no head 9.0"),
        ({"kind": "attention", "id": 1, "layer": 0, "head": 0, "token": 99}, 404, "there is no token 99"),
        ({"kind": "prune", "id": 1, "pruned": [[0, 9]]}, 422, "there is no head (0, 9)"),
        ({"kind": "prune", "id": 1, "pruned": [[0, -1]]}, 400, "each [layer, head]"),
        ({"kind": "prune", "id": 1, "pruned": ["0.1"]}, 400, "each [layer, head]"),
        ({"kind": "metric", "pruned": [[0, 0]]}, 400, "needs ids"),
        ({"kind": "metric", "ids": [1, N_EXAMPLES]}, 404, f"no example {N_EXAMPLES}"),
        ({"kind": "metric", "ids": [1, "2"]}, 400, "whole numbers"),
    ],
)
def test_what_cannot_be_asked_is_said_clearly(asked_served, what, status, message):
    answer = post(asked_served, **what)
    assert (answer.status, message) == (status, message if message in json.loads(answer.body)["error"] else answer.body)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff"])
def test_what_is_no_request_is_refused(asked_served, body):
    assert asked_served.ask("/api/v1/probe", "POST", body).status == 400
    assert asked_served.ask("/api/v1/probe").status == 405


def test_a_text_that_is_too_long_for_the_model_is_refused_or_cut(asked_served):
    found = said(asked_served, kind="predict", text=["good " * 5000])
    assert len(found["tokens"]) == 40
    assert post(asked_served, kind="predict", text=["good " * 50_000]).status == 400


def test_of_many_requests_of_one_client_only_the_last_has_to_be_answered(asked_served):
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: post(asked_served, kind="metric", ids=list(range(48)), client="one"), range(24))
        )
    statuses = {answer.status for answer in answers}
    assert statuses <= {200, 409}
    assert 200 in statuses
    for answer in answers:
        if answer.status == 409:
            assert "superseded by a newer request for metric" in json.loads(answer.body)["error"]


def test_the_models_stay_as_they_are_and_few_are_held(split, folders):
    models = Models(folders[0], trust_remote_code=False)
    loaded = models.of(split, None)
    assert loaded is models.of(split, None)
    assert not loaded.model.training
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    others = [models.of(split, index) for index in (0, 1)]
    assert len(models._held) == MOST_HELD
    assert models.of(split, None) is not loaded
    assert others[1].name == "epoch 1"
    assert all(torch.equal(before[name], value) for name, value in models.of(split, None).model.state_dict().items())


def test_code_beside_the_weights_runs_only_if_it_is_trusted(split, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    own = tmp_path / "own"
    shutil.copytree(folders[1], own)
    code = ["from transformers import BertForSequenceClassification as Base", "class Own(Base):", "    pass", ""]
    (own / "modeling_own.py").write_text("\n".join(code))
    config = json.loads((own / "config.json").read_text())
    said = {"architectures": ["Own"], "auto_map": {"AutoModelForSequenceClassification": "modeling_own.Own"}}
    (own / "config.json").write_text(json.dumps(config | said))
    with pytest.raises(ProbingError, match="a model of class Own, which transformers does not have"):
        Models(own, trust_remote_code=False).of(split, None)
    assert not (tmp_path / "modules").exists()
    loaded = Models(own, trust_remote_code=True).of(split, None)
    assert type(loaded.model).__name__ == "Own"
    assert not loaded.model.training


def test_weights_and_hooks_are_the_same_after_all_kinds_of_requests(asked, split):
    from t3vis.viewer.probes import Prober, probe_of

    prober = Prober(open_run(asked), None, trust_remote_code=False)

    def answer(**what: Any) -> None:
        for _ in prober.work(probe_of(json.dumps(what).encode(), open_run(asked))):
            pass

    answer(kind="predict", id=0)
    (loaded,) = prober._models._held.values()
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    for kind in ("attention", "saliency", "predict", "prune"):
        answer(kind=kind, id=2, pruned=PRUNED)
    for kind in ("metric", "importance"):
        answer(kind=kind, ids=[1, 2, 3], pruned=PRUNED)
    assert list(prober._models._held.values()) == [loaded]
    assert all(torch.equal(before[name], value) for name, value in loaded.model.state_dict().items())
    assert not loaded.model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in loaded.model.modules())


def test_without_a_model_the_recorded_is_still_there(plain_served):
    recorded = json.loads(plain_served.ask("/api/v1/run").body)
    assert not any(record["has_checkpoint"] for record in recorded["splits"][0]["passes"])
    answer = post(plain_served, kind="predict", id=1)
    assert answer.status == 422
    assert "has no checkpoint" in json.loads(answer.body)["error"]
    assert "--model" in json.loads(answer.body)["error"]
    assert json.loads(plain_served.ask("/api/v1/splits/train/heads").body)["measures"] == []
