"""What an exported page holds of the model's answers: the same as the model itself says."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Locator, Page, expect

from t3vis import open_run
from t3vis.checkpointed import pass_with_checkpoint
from t3vis.cli import main
from t3vis.errors import ProbingError
from t3vis.probing.attention import attention_weights
from t3vis.probing.encoded import encoded, stacked
from t3vis.probing.model import load_model
from t3vis.probing.saliency import explain
from t3vis.recorded_example import tokenizer_of
from t3vis.viewer import kept_answers
from t3vis.viewer.export import export_viewer
from t3vis.viewer.instances import explained, of_text, predicted, predicted_everywhere
from t3vis.viewer.models import Loaded
from tests.probing.examples import word_tokenizer
from tests.probing.models import language_model
from tests.viewer.asked import NAMES
from tests.viewer.browser import READY

KEPT = (4, 40)


class Model:
    """The last model of the run, asked directly."""

    def __init__(self, run: Path) -> None:
        split = open_run(run).train
        folder = pass_with_checkpoint(split)[1].path
        self.model, self.tokenizer, self._texts = load_model(folder), tokenizer_of(folder), split.text["text"]

    def text(self, number: int) -> str:
        return str(self._texts[number])

    def probs(self, number: int) -> list[float]:
        inputs = stacked([encoded(self.tokenizer, self.text(number))], pad_id=0)
        with torch.no_grad():
            return self.model(**inputs).logits[0].softmax(0).tolist()

    def attention(self, number: int) -> np.ndarray:
        inputs = stacked([encoded(self.tokenizer, self.text(number))], pad_id=0)
        return np.stack([layer.weights[0] for layer in attention_weights(self.model, inputs)])


@pytest.fixture(scope="module")
def model(asked) -> Model:
    return Model(asked)


@pytest.fixture(scope="module")
def exported(asked, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("answers") / "one.html"
    assert main(["view", str(asked), "--export", str(path), "--examples", ",".join(map(str, KEPT))]) == 0
    return path


def instance(page: Page) -> Locator:
    return page.get_by_role("region", name="Instance Investigation View")


def opened(page: Page, path: Path, **state: object) -> None:
    page.goto(f"{path.as_uri()}#s={json.dumps(state)}")
    page.wait_for_selector(READY)


def values(page: Page) -> list[float]:
    tokens = instance(page).locator("[data-token][data-value]")
    expect(tokens.first).to_be_visible()
    return [float(token.get_attribute("data-value") or "nan") for token in tokens.all()]


def test_predictions_and_saliency_of_each_class(page, exported, model):
    opened(page, exported, example=KEPT[0])
    for number, prob in enumerate(model.probs(KEPT[0])):
        bar = instance(page).locator(f'[data-class="{number}"]')
        expect(bar).to_contain_text(f"{prob:.3f}")
        bar.click()
        expect(instance(page)).to_contain_text(f"CP-LRP for “{NAMES[number]}”")
        expected = explain(model.model, model.tokenizer, model.text(KEPT[0]), classes=[number])
        np.testing.assert_allclose(values(page), expected.values[0], atol=1e-5)
    expect(instance(page).get_by_role("button", name="edit the text")).to_have_count(0)
    expect(instance(page).get_by_label("saliency method")).to_have_count(0)


def test_attention_of_every_head_from_every_token(page, exported, model):
    opened(page, exported, example=KEPT[1], heads="pattern", headsOf="example")
    weights = model.attention(KEPT[1])
    for layer, head, token in ((0, 0, 1), (1, 3, 0), (1, 0, 5)):
        page.locator(f'[data-head="{layer}.{head}"]').click()
        instance(page).locator(f'[data-token="{token}"]').click()
        expect(instance(page)).to_contain_text(f"attention of head {layer}.{head} from")
        np.testing.assert_allclose(values(page), weights[layer, head, token], atol=1e-3)
        instance(page).locator(f'[data-token="{token}"]').click()
    shown = page.locator('[data-head="1.3"]')
    shown.hover()
    expect(page.get_by_text(f"{weights[1, 3].max():.4g}").first).to_be_visible()


def test_other_examples_lead_to_those_that_are_held(page, exported):
    opened(page, exported, example=7, heads="pattern", headsOf="example")
    expect(page.get_by_role("region", name="Attention Head View")).to_contain_text("of these examples: 4, 40")
    expect(instance(page)).to_contain_text(f"gold label: {NAMES[7 % 3]}")
    instance(page).get_by_role("button", name="40", exact=True).click()
    expect(instance(page)).to_contain_text("example 40")
    expect(instance(page).locator('[data-class="0"]')).to_be_visible()


def test_another_epoch_has_no_answers(page, exported):
    opened(page, exported, example=KEPT[0], epoch=0)
    expect(instance(page)).to_contain_text("holds no answers about this example and epoch")


def test_the_most_suspicious_examples_by_default_and_what_is_left_out_is_said(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_answers, "MOST_WEIGHTS", 2 * 4 * 8 * 8)
    said: list[str] = []
    export_viewer(open_run(asked), tmp_path / "site", say=said.append)
    (kept,) = json.loads((tmp_path / "site/data/run.json").read_text())["probing"]["kept"].values()
    assert len(kept["ids"]) == 20
    assert kept["epoch"] == 1
    answers = tmp_path / "site/data/splits/0/answers"
    assert sorted(int(path.stem) for path in answers.glob("*.json")) == sorted(kept["ids"])
    held = {int(path.name.partition("-")[0]) for path in answers.glob("*-weights.bin")}
    named = {i for i in kept["ids"] if any(f"the attention weights of example {i} of train" in line for line in said)}
    assert held | named == set(kept["ids"])
    assert held
    assert named
    assert not held & named


def test_a_model_that_is_named_answers(asked, model, tmp_path, page):
    first = pass_with_checkpoint(open_run(asked).train, 0)[1].path
    export_viewer(open_run(asked), tmp_path / "one.html", examples=[2], model=first)
    opened(page, tmp_path / "one.html", example=2)
    inputs = stacked([encoded(model.tokenizer, model.text(2))], pad_id=0)
    probs = load_model(first)(**inputs).logits[0].softmax(0).tolist()
    reading = instance(page).get_by_role("group", name=f"as {first.name} reads it")
    for number, prob in enumerate(probs):
        expect(reading.locator(f'[data-class="{number}"]')).to_contain_text(f"{prob:.3f}")


def test_without_a_model_there_are_no_answers(plain, tmp_path):
    said: list[str] = []
    export_viewer(open_run(plain), tmp_path / "site", examples=[1], say=said.append)
    assert json.loads((tmp_path / "site/data/run.json").read_text())["probing"]["kept"] == {}
    assert any("no model" in line for line in said)


def test_a_checkpoint_that_cannot_be_loaded_is_left_out_and_a_model_that_was_named_is_not(asked, tmp_path):
    shutil.copytree(asked.parent, tmp_path / "runs")
    run = open_run(tmp_path / "runs" / asked.name)
    folder = pass_with_checkpoint(run.train)[1].path
    (folder / "config.json").write_text("{}")
    said: list[str] = []
    export_viewer(run, tmp_path / "site", examples=[1], say=said.append)
    assert json.loads((tmp_path / "site/data/run.json").read_text())["probing"]["kept"] == {}
    assert any("what the model says" in line and str(folder) in line for line in said)
    with pytest.raises(ProbingError, match=re.escape(str(folder))):
        export_viewer(run, tmp_path / "other", examples=[1], model=folder)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("ids", "message"),
    [("3,many", "such as 3,17; found '3,many'"), ("3,-1", "example -1"), ("48", "ids go from 0 to 47")],
)
def test_examples_that_are_none_are_refused(asked, tmp_path, capsys, ids, message):
    command = ["view", str(asked), "--export", str(tmp_path / "site"), f"--examples={ids}"]
    try:
        status = main(command)
    except SystemExit as error:
        status = error.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_a_model_that_answers_at_every_token_has_its_answers_at_each(tmp_path):
    tokenizer = word_tokenizer()
    loaded = Loaded(language_model("gpt2").eval(), tokenizer, "tiny", "tiny")
    asked = of_text(loaded, ["it was a good film"])
    found = predicted_everywhere(loaded, asked)
    assert [place["position"] for place in found["places"]] == list(range(len(asked.example)))
    for position, place in enumerate(found["places"]):
        assert place["choices"] == predicted(loaded, asked, (), position)["choices"]
    assert found["choices"] == found["places"][-1]["choices"] != found["places"][0]["choices"]
    assert explained(loaded, asked, (), None, None, None)["method"] == "attnlrp"
