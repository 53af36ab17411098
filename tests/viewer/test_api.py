"""What a program is told: the OpenAPI document, columns, figures, Parquet."""

import functools
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from t3vis import open_run
from t3vis.analyze import analyzed_progress, analyzed_suspects
from t3vis.viewer.app import make_app
from t3vis.viewer.figures import FIGURE_KINDS
from tests.viewer.conftest import TOKEN


def told(served, path):
    answer = served.ask(f"/api/v1{path}")
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def test_every_route_is_described(served, recorded_run):
    document = told(served, "/openapi.json")
    api = make_app(open_run(recorded_run), token=TOKEN).routes[0]
    routes = {"/api/v1" + route.path.replace(":int", "") for route in api.routes}
    assert set(document["paths"]) == routes
    for route in api.routes:
        methods = {method.lower() for method in route.methods} - {"head"}
        assert set(document["paths"]["/api/v1" + route.path.replace(":int", "")]) == methods


def test_the_document_is_one_of_openapi(served):
    validate(told(served, "/openapi.json"))


def check_answer(server, document, path, described, method="get", body=None, **headers):
    """An answer has the status and the type that the document says, and fits its schema."""
    answer = server.ask(f"/api/v1{path}", method.upper(), body, **headers)
    said = document["paths"][f"/api/v1{described}"][method]["responses"][str(answer.status)]["content"]
    media_type = answer.headers["content-type"].partition(";")[0]
    schema = said[media_type]["schema"]
    if media_type == "application/json":
        whole = {**schema, "components": document["components"]}
        Draft202012Validator(whole).validate(json.loads(answer.body))
    return answer


def test_answers_fit_their_schemas(served, asked_served):
    for server in (served, asked_served):
        document = told(server, "/openapi.json")
        check = functools.partial(check_answer, server, document)
        run = json.loads(check("/run", "/run").body)
        check("/openapi.json", "/openapi.json")
        for split in (split["name"] for split in run["splits"]):
            base, described = f"/splits/{split}", "/splits/{split}"
            catalogue = json.loads(check(f"{base}/columns", f"{described}/columns").body)
            values = [column for column in catalogue["columns"] if column["id"] in ("label", "loss@0")]
            for column in values:
                sent = check(column["url"].removeprefix("/api/v1"), "/columns/{key}")
                assert len(sent.body) == catalogue["n"] * np.dtype(column["dtype"]).itemsize
            assert values
            check(f"{base}/rows?ids=0,3", f"{described}/rows")
            check(f"{base}/search?q=a", f"{described}/search")
            check(f"{base}/examples/3", f"{described}/examples/{{number}}")
            check(f"{base}/heads", f"{described}/heads")
            check(f"{base}/heads?kind=pattern", f"{described}/heads")
            for kind in FIGURE_KINDS:
                answer = check(f"{base}/figures/{kind}", f"{described}/figures/{{kind}}")
                assert answer.status in (200, 202, 409)
            mask = bytes([1] + [0] * (-(-catalogue["n"] // 8) - 1))
            check(f"{base}/parquet?columns=label", f"{described}/parquet", "post", mask)
            assert check(f"{base}/examples/999999", f"{described}/examples/{{number}}").status == 404
            assert check(f"{base}/rows?ids=x", f"{described}/rows").status == 400
        check("/selection?split=train", "/selection", "post", b"\0")
        question = {"client": "test", "kind": "attention", "split": "train", "id": 0}
        check("/probe", "/probe", "post", json.dumps(question).encode())
        assert check("/run", "/run", authorization="").status == 401


def test_every_suspicion_is_a_column(served, recorded_run):
    run = open_run(recorded_run)
    columns = {column["id"]: column for column in told(served, "/splits/train/columns")["columns"]}
    for name, values in analyzed_suspects(run, run.train).as_columns().items():
        sent = served.ask(columns[name]["url"]).body
        if name == "suggested_label":
            np.testing.assert_array_equal(np.frombuffer(sent, np.uint8), values)
        else:
            np.testing.assert_array_equal(np.frombuffer(sent, "<f4"), values.astype(np.float32))


def test_figures_are_those_of_the_analysis(served, recorded_run):
    run = open_run(recorded_run)
    found = told(served, "/splits/train/figures/progress")
    assert found["figures"]["accuracy"] == pytest.approx(analyzed_progress(run, run.train).figures["accuracy"])
    assert served.ask("/api/v1/splits/train/figures/nothing").status == 404


def parquet(served, columns, mask):
    return served.ask(f"/api/v1/splits/train/parquet?columns={columns}", "POST", mask)


def test_a_selection_becomes_parquet(served, recorded_run):
    train = open_run(recorded_run).train
    mask = np.zeros(len(train), bool)
    mask[[0, 5, 77]] = True
    answer = parquet(served, "label,loss@1", np.packbits(mask, bitorder="little").tobytes())
    assert answer.status == 200
    table = pq.read_table(io.BytesIO(answer.body)).to_pydict()
    assert table["example"] == [0, 5, 77]
    assert table["label"] == [train.class_names[train.labels[i]] for i in (0, 5, 77)]
    assert table["loss@1"] == pytest.approx(train.loss[1][[0, 5, 77]])
    assert table["text"] == [train.text["text"][i] for i in (0, 5, 77)]


@pytest.mark.parametrize(("columns", "n_bytes", "status"), [("nothing", 27, 404), ("label", 3, 400)])
def test_parquet_of_what_is_not_there(served, columns, n_bytes, status):
    assert parquet(served, columns, bytes(n_bytes)).status == status


def test_nobody_is_told_a_selection_that_nobody_wants(served):
    assert served.ask("/api/v1/selection?split=train", "POST", bytes(27)).status == 404
