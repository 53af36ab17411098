"""Tasks that need the model, done by clicking: what heads attend to, which matter, pruning, what a prediction rests on.

What the page shows is compared with what the store holds, and with what ``t3vis.probing`` says when it is called.
"""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from t3vis import open_run
from t3vis.analysis.attention_patterns import PATTERNS, head_names, strongest
from t3vis.analyze_attention import analyzed_attention
from t3vis.analyze_heads import recorded_heads
from t3vis.checkpointed import pass_with_checkpoint
from t3vis.probing.attention import attention_weights
from t3vis.probing.encoded import encoded, stacked
from t3vis.probing.gating import heads_of
from t3vis.probing.model import example_inputs, load_model
from t3vis.probing.pruning import effect, effect_on_example
from t3vis.probing.saliency import explain
from t3vis.recorded_example import tokenizer_of
from tests.viewer.asked import N_EXAMPLES, NAMES
from tests.viewer.browser import opened

N_LAYERS, N_HEADS = 2, 4


class Asked:
    """The run, and the model of each of its epochs."""

    def __init__(self, path: Path) -> None:
        self.run = open_run(path)
        self.split = self.run.train
        folders = [pass_with_checkpoint(self.split, index)[1].path for index in range(2)]
        self.models = [load_model(folder) for folder in folders]
        self.tokenizer = tokenizer_of(folders[0])

    def text(self, number: int) -> str:
        return str(self.split.text["text"][number])

    def row(self, number: int) -> dict[str, Any]:
        return {**encoded(self.tokenizer, self.text(number)).inputs, "labels": int(self.split.labels[number])}


@pytest.fixture(scope="module")
def known(asked) -> Asked:
    return Asked(asked)


def heads_view(page: Page) -> Locator:
    return page.get_by_role("region", name="Attention Head View")


def instance_view(page: Page) -> Locator:
    return page.get_by_role("region", name="Instance Investigation View")


def cell(page: Page, layer: int, head: int) -> Locator:
    return heads_view(page).locator(f'[data-head="{layer}.{head}"]')


def choose_example(page: Page, number: int) -> None:
    page.locator(f'[data-id="{number}"]').click()
    expect(instance_view(page)).to_contain_text(f"example {number}")


def in_address(page: Page) -> dict[str, Any]:
    return json.loads(unquote(page.url.partition("#s=")[2]) or "{}")


def shown_importance(page: Page) -> np.ndarray:
    values = [
        [float(cell(page, layer, head).get_attribute("data-value") or "nan") for head in range(N_HEADS)]
        for layer in range(N_LAYERS)
    ]
    return np.array(values)


def values_of_tokens(page: Page) -> np.ndarray:
    tokens = instance_view(page).locator("[data-token][data-value]")
    expect(tokens.first).to_be_visible()
    return np.array([float(value) for value in tokens.evaluate_all("all => all.map((one) => one.dataset.value)")])


def test_t3_what_each_head_attends_to(page, asked_served, known):
    opened(page, asked_served)
    view = heads_view(page)
    view.get_by_role("button", name="attention").click()
    expect(view.get_by_role("button", name="aggregate")).to_have_attribute("aria-pressed", "true")
    view.get_by_role("button", name="Look at 200 examples").click()
    expect(cell(page, 0, 0)).to_have_attribute("aria-label", re.compile("^head 0.0: "))  # it has been kept
    patterns = analyzed_attention(known.run, known.split, pass_index=1, max_examples=200)
    names = head_names(patterns)
    for layer in range(N_LAYERS):
        for head in range(N_HEADS):
            several = ", ".join(name.replace("_", " ") for name in names[layer, head])
            expect(cell(page, layer, head)).to_have_attribute("aria-label", f"head {layer}.{head}: {several}")
    cell(page, 1, 2).hover()
    card = page.locator(".head-card")
    expect(card).to_contain_text("layer 1, head 2")
    best = max(PATTERNS, key=lambda pattern: np.nan_to_num(patterns.of(pattern)[1, 2], nan=-1.0))
    expect(card).to_contain_text(best.replace("_", " "))
    assert any(found.head == 2 and found.layer == 1 for found in strongest(patterns, best, n=N_LAYERS * N_HEADS))

    choose_example(page, 4)
    view.get_by_role("button", name="this example").click()
    expect(view).to_contain_text("rows attend to columns; example 4")
    batch = stacked([encoded(known.tokenizer, known.text(4))], pad_id=0)
    weights = np.stack([layer.weights[0] for layer in attention_weights(known.models[1], batch)])
    cell(page, 0, 3).hover()
    expect(card).to_contain_text("layer 0, head 3")
    greatest = re.search(r"greatest weight\s*([\d.]+)", card.inner_text())
    assert greatest is not None
    assert float(greatest[1]) == pytest.approx(weights[0, 3].max(), rel=1e-3)
    expect(card.get_by_role("img", name="enlarged")).to_contain_text("[CLS]")

    cell(page, 0, 3).click()
    instance_view(page).get_by_role("button", name="it", exact=True).click()
    expect(instance_view(page)).to_contain_text("attention of head 0.3 from “it”")
    np.testing.assert_allclose(values_of_tokens(page), weights[0, 3, 1], atol=5e-4)
    assert {"heads": "pattern", "headsOf": "example", "head": [0, 3], "token": 1, "example": 4}.items() <= in_address(
        page
    ).items()


def test_t4_which_heads_matter(page, asked_served, known):
    opened(page, asked_served)
    view = heads_view(page)
    recorded = {index: scores.scores["gate"] for index, scores in recorded_heads(known.run, known.split).items()}
    expect(view).to_contain_text(f"importance, {N_EXAMPLES} examples, train mode")
    shown = shown_importance(page)
    np.testing.assert_allclose(shown, recorded[1].value, rtol=1e-6)
    best = recorded[1].ranking()[0]
    assert np.unravel_index(shown.argmax(), shown.shape) == best
    cell(page, *best).hover()
    expect(page.locator(".head-card")).to_contain_text(f"rank1 of {N_LAYERS * N_HEADS}")

    darkest = fills(page)
    view.get_by_role("button", name="by layer").click()
    expect(view).to_contain_text("most of its layer")
    by_layer = fills(page)
    assert (
        len({by_layer[layer, int(shown[layer].argmax())] for layer in range(N_LAYERS)}) == 1
    )  # each layer has its own
    assert len({darkest[layer, int(shown[layer].argmax())] for layer in range(N_LAYERS)}) == 2

    view.get_by_label("epoch of the heads").select_option(label="epoch 0")
    expect(cell(page, 0, 0)).to_have_attribute("data-value", re.compile(f"^{recorded[0].value[0, 0]:.4g}"[:6]))
    np.testing.assert_allclose(shown_importance(page), recorded[0].value, rtol=1e-6)

    choose_example(page, 5)
    view.get_by_role("button", name="this example").click()
    expect(view).to_contain_text("importance, example 5, train mode")
    np.testing.assert_allclose(shown_importance(page), known.split.head_gradients[0][:, 5], rtol=1e-5)


def fills(page: Page) -> dict[tuple[int, int], str | None]:
    return {
        (layer, head): cell(page, layer, head).locator("rect").first.get_attribute("fill")
        for layer in range(N_LAYERS)
        for head in range(N_HEADS)
    }


def test_t5_what_pruning_a_head_does(page, asked_served, known):
    opened(page, asked_served, example=7)
    heads = heads_of(known.models[1], example_inputs(known.models[1]))
    best = recorded_heads(known.run, known.split)[1].scores["gate"].ranking()[0]
    cell(page, *best).hover()
    heads_view(page).get_by_role("button", name=f"prune head {best[0]}.{best[1]}").click()
    expect(cell(page, *best)).to_have_attribute("aria-label", re.compile(", pruned"))
    check_effects(page, known, heads, [best], list(range(N_EXAMPLES)))

    other = (1 - best[0], best[1])
    cell(page, *other).focus()
    page.keyboard.press("x")
    check_effects(page, known, heads, [best, other], list(range(N_EXAMPLES)))
    assert in_address(page)["pruned"] == [list(best), list(other)]

    page.locator('[data-id="2"]').click()
    page.locator('[data-id="6"]').click(modifiers=["Shift"])
    expect(page.get_by_role("table", name="metric on the selection")).to_contain_text("examples selected")
    page.get_by_role("button", name=f"restore head {best[0]}.{best[1]}").first.click()
    expect(cell(page, *best)).not_to_have_attribute("aria-label", re.compile("pruned"))
    page.get_by_role("button", name="restore all").click()
    expect(page.get_by_role("region", name="Pruned heads")).to_have_count(0)
    page.get_by_role("button", name="undo").click()
    expect(cell(page, *other)).to_have_attribute("aria-label", re.compile("pruned"))


def check_effects(page: Page, known: Asked, heads: Any, pruned: list[tuple[int, int]], ids: list[int]) -> None:
    expect(page.get_by_role("region", name="Pruned heads")).to_have_attribute("aria-busy", "false")
    whole, without = effect_on_example(heads, known.row(7), pruned)
    table = page.get_by_role("table", name="prediction of example 7")
    losses = re.search(r"loss ([\d.]+) → ([\d.]+)", table.inner_text())
    assert losses is not None
    assert [float(loss) for loss in losses.groups()] == pytest.approx([whole["loss"], without["loss"]], rel=1e-3)
    probs = [np.exp(each["logits"][0]) / np.exp(each["logits"][0]).sum() for each in (whole, without)]
    for number, name in enumerate(NAMES):
        shown = figures(table, name)
        assert shown == pytest.approx([probs[0][number], probs[1][number]], abs=6e-4)
    found = effect(heads, [known.row(i) for i in ids], pruned)
    metric = page.get_by_role("table", name="metric on the selection")
    assert figures(metric, "accuracy")[:2] == pytest.approx([found.score.mean(), found.score_without.mean()], rel=1e-3)
    assert figures(metric, "loss")[:2] == pytest.approx([found.loss.mean(), found.loss_without.mean()], rel=1e-3)


def figures(table: Locator, name: str) -> list[float]:
    """The numbers in the cells of a row."""
    cells = table.get_by_role("row", name=name).get_by_role("cell").all_inner_texts()
    return [float(text.split()[0]) for text in cells]


def test_t7_which_tokens_a_prediction_rests_on(page, asked_served, known):
    opened(page, asked_served)
    choose_example(page, 1)
    view = instance_view(page)
    for number in (1, 0):
        view.locator(f'[data-class="{number}"]').click()
        expect(view).to_contain_text(f"CP-LRP for “{NAMES[number]}”")
        expected = explain(known.models[1], known.tokenizer, known.text(1), classes=[number])
        np.testing.assert_allclose(values_of_tokens(page), expected.values[0], atol=1e-5)
    strongest_token = int(np.abs(expected.values[0]).argmax())
    assert view.locator(f'[data-token="{strongest_token}"]').inner_text() == expected.example.tokens[strongest_token]

    view.get_by_label("saliency method").select_option(label="integrated gradients")
    expect(view).to_contain_text(f"integrated gradients for “{NAMES[0]}”")
    by_other = explain(known.models[1], known.tokenizer, known.text(1), classes=[0], method="integrated_gradients")
    np.testing.assert_allclose(values_of_tokens(page), by_other.values[0], atol=1e-4)


def test_two_epochs_side_by_side(page, asked_served, known):
    opened(page, asked_served, example=3)
    view = instance_view(page)
    view.get_by_label("compare with the model of").select_option(label="epoch 0")
    for index, reading in ((1, "as epoch 1 reads it"), (0, "as epoch 0 reads it")):
        inputs = encoded(known.tokenizer, known.text(3)).inputs
        logits = known.models[index](**{name: values[None] for name, values in inputs.items()}).logits[0]
        for number, prob in enumerate(logits.softmax(0).tolist()):
            bar = view.get_by_role("group", name=reading).locator(f'[data-class="{number}"]')
            expect(bar).to_contain_text(f"{prob:.3f}")
    assert in_address(page)["against"] == 0
    page.reload()
    expect(view.get_by_role("group", name="as epoch 0 reads it").locator('[data-class="0"]')).to_be_visible()


def test_an_edited_text_is_predicted_again(page, asked_served, known):
    opened(page, asked_served, example=1)
    view = instance_view(page)
    view.get_by_role("button", name="edit the text").click()
    view.get_by_label("text").fill("it was a very bad film")
    page.keyboard.press("Control+Enter")
    inputs = encoded(known.tokenizer, "it was a very bad film").inputs
    logits = known.models[1](**{name: values[None] for name, values in inputs.items()}).logits[0]
    for number, prob in enumerate(logits.softmax(0).tolist()):
        expect(view.locator(f'[data-class="{number}"]')).to_contain_text(f"{prob:.3f}")
    expect(view.locator("[data-token]")).to_have_text(["[CLS]", *["it", "was", "a", "very", "bad", "film"], "[SEP]"])
    view.get_by_role("button", name="back to the example").click()
    expect(view.locator("[data-token]").nth(4)).to_have_text(known.text(1).split()[3])


def test_heads_and_tokens_by_the_keyboard(page, asked_served):
    opened(page, asked_served, example=2, heads="pattern", headsOf="example")
    cell(page, 0, 0).focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    expect(cell(page, 1, 2)).to_be_focused()
    page.keyboard.press("Enter")
    expect(cell(page, 1, 2)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("x")
    expect(cell(page, 1, 2)).to_have_attribute("aria-label", "head 1.2, pruned, chosen")
    page.keyboard.press("r")
    expect(cell(page, 1, 2)).to_have_attribute("aria-label", "head 1.2, chosen")
    instance_view(page).locator('[data-class="1"]').focus()
    page.keyboard.press("Enter")
    expect(instance_view(page)).to_contain_text("CP-LRP for")
    instance_view(page).locator('[data-token="2"]').focus()
    page.keyboard.press("Enter")
    expect(instance_view(page)).to_contain_text("attention of head 1.2 from")


def test_pictures_of_both_views(page, asked_served):
    opened(page, asked_served, example=2, heads="pattern", headsOf="example", choice=1)
    expect(cell(page, 1, 3)).to_be_visible()
    expect(instance_view(page)).to_contain_text("CP-LRP for")
    for view, name, wanted in (
        (heads_view(page), "heads", "data:image/png"),
        (instance_view(page), "instance", "film"),
    ):
        view.get_by_role("button", name=f"save {name}").click()
        with page.expect_download() as download:
            view.get_by_role("menuitem", name="SVG").click()
        assert wanted in Path(download.value.path()).read_text()


def test_a_run_without_models_says_what_is_missing(page, plain_served):
    opened(page, plain_served, example=2)
    expect(heads_view(page)).to_contain_text("RecorderCallback(heads=True)")
    expect(instance_view(page)).to_contain_text("No model of this epoch is at hand")
