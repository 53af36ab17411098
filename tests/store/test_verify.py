"""Damage done to real files: what ``verify`` says of it, and what can still be read."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.checksums import checksum, checksums_below
from t3vis.store.examples import Columns, ExamplesWriter
from t3vis.store.reader import open_run
from t3vis.store.results import write_result
from t3vis.store.seal import remove_sealed_segments, seal_pass
from t3vis.store.verify import verify
from t3vis.store.writer import create_run

from .operations import READING, before_operation
from .recordings import new_run, rows_of, split_attributes, two_epochs
from .test_format import ARCHIVE


def small_chunks(monkeypatch):
    """Arrays of ten examples become several chunks, and several shards."""
    monkeypatch.setattr("t3vis.store.layout.MIN_CHUNK_ROWS", 2)
    monkeypatch.setattr("t3vis.store.layout.MAX_CHUNK_ROWS", 2)
    monkeypatch.setattr("t3vis.store.layout.SHARD_BYTES", 64)


def with_checksums(path, split="train"):
    """Keep the checksums of all shards in the manifests, whoever sealed them."""
    for commit in (path / split / "commits").glob("p*"):
        manifest = schema.read_metadata(commit)["attributes"]
        folders = [path / split / name / "c" / str(manifest["pass"]) for name in schema.STORED_ARRAYS]
        manifest["checksums"] = checksums_below(folders, path / split)
        schema.write_metadata(commit, schema.group_metadata(manifest))


def without_checksums(path, split="train"):
    """Manifests, and examples, as a writer without checksums leaves them."""
    for node in [*(path / split / "commits").glob("p*"), path / split / "examples"]:
        if schema.node_exists(node):
            change(node / "zarr.json", lambda metadata: metadata["attributes"].pop("checksums", None))


def whole_run(path):
    """A run with everything: sealed and unsealed passes, examples, a tokenizer, an evaluation, a result."""
    writer = create_run(path, {})
    examples = ExamplesWriter(path / "train/examples", 10)
    examples.add(
        Columns(
            labels=np.arange(10) % 3,
            targets=np.ones((10, 2), np.float32),
            length=np.arange(10, dtype=np.int32),
            token_ids=np.arange(45, dtype=np.int32),
            n_token_ids=np.arange(10),
            texts={"a sentence": [f"naïve {i}" for i in range(9)] + [None], "b": ["b"] * 10},
        )
    )
    fingerprint = f"{examples.close()}-10"
    writer.add_split("train", split_attributes(10) | {"fingerprint": fingerprint})
    writer.add_split("eval", split_attributes(None, "eval"))
    for index in range(3):
        writer.begin_pass("train", index, {"epoch": index, "step": 2 * index})
        for half in range(2):
            writer.log("train", rows_of(np.arange(5 * half, 5 * half + 5), 2 * index + half))
        writer.begin_pass("eval", index, {"epoch": index, "step": 2 * index + 1})
        writer.log("eval", rows_of(range(index + 1), 2 * index + 1, n_layers=0))
        writer.flush()
    for index in range(2):
        seal_pass(path, "train", index)
        seal_pass(path, "eval", index)
        remove_sealed_segments(path, "train")
    tokenizer = ExamplesWriter(path / "tokenizer", 3)
    tokenizer.add(Columns(texts={"token": ["[PAD]", "ge", "##lb"]}))
    tokenizer.close()
    columns = {"score": np.arange(10.0), "known": np.ones(10, bool)}
    write_result(path, "train", "quality", columns, meanings=dict.fromkeys(columns, "a column"), attributes={})
    with_checksums(path)
    with_checksums(path, "eval")
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    small_chunks(monkeypatch)
    return whole_run(tmp_path / "run")


def change(file: Path, edit):
    """Edit the JSON of a metadata file."""
    metadata = json.loads(file.read_text())
    edit(metadata)
    file.write_text(json.dumps(metadata))


def flip(file: Path, position: int, bits: int = 1):
    content = bytearray(file.read_bytes())
    content[position] ^= bits
    file.write_bytes(content)


def said(path):
    return [str(problem).replace(f"{path}/", "") for problem in verify(path)]


def shards(path):
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json")


# What is whole


def test_a_whole_run_has_no_problems_while_it_is_recorded_and_when_it_is_sealed(tmp_path):
    new_run(tmp_path / "begun")
    assert verify(tmp_path / "begun") == []
    two_epochs(tmp_path / "run")
    assert verify(tmp_path / "run") == []
    for index in range(2):
        seal_pass(tmp_path / "run", "train", index)
        assert verify(tmp_path / "run") == []
        without_checksums(tmp_path / "run")
        assert verify(tmp_path / "run") == []


def test_a_run_with_everything_is_whole_and_all_of_it_is_looked_at(run):
    heard = []
    assert verify(run, progress=lambda done, total: heard.append((done, total))) == []
    total = sum(file.stat().st_size for file in shards(run))
    assert heard == sorted(heard)
    assert heard[-1] == (total, total)
    assert len(heard) > len(shards(run)) / 2


def test_the_archived_run_of_format_1_is_whole(tmp_path):
    shutil.unpack_archive(ARCHIVE, tmp_path, filter="data")
    assert verify(tmp_path / "run.zarr") == []


def test_a_resumed_run_with_repeated_examples_is_whole(tmp_path):
    two_epochs(tmp_path, seal=True)
    writer = create_run(tmp_path, {}, start_step=3, resume=True)
    assert verify(tmp_path) == []
    writer.begin_pass("train", 1, {"epoch": 1, "step": 2})
    writer.log("train", rows_of([6, 6, 2], 3, seed=1))
    writer.seal("train", 1)
    writer.close()
    assert open_run(tmp_path).epochs[1].n_repeated
    assert verify(tmp_path) == []


def test_an_epoch_of_which_nothing_was_recorded_is_whole(tmp_path):
    two_epochs(tmp_path, seal=True)
    seal_pass(tmp_path, "train", 2)
    without_checksums(tmp_path)
    assert verify(tmp_path) == []


def test_what_does_not_count_is_not_looked_at(run):
    (run / "train/logits/c/2/0/0").mkdir(parents=True)
    (run / "train/logits/c/2/0/0/0").write_bytes(b"left by a sealer that died")
    (run / "train/segments/a0000_r0000/p0007_s000000/loss/c").mkdir(parents=True)
    (run / "train/segments/a0000_r0000/p0007_s000000/loss/c/0").write_bytes(b"left by a writer that died")
    (run / "train/loss/c/0/0.77.partial").write_bytes(b"")
    (run / "somebody").mkdir()
    (run / "somebody/else.txt").write_text("")
    assert verify(run) == []


def test_no_run_is_an_error_not_a_problem(tmp_path):
    with pytest.raises(StoreError, match="found nothing"):
        verify(tmp_path / "run")


# Shards


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch)
        return whole_run(tmp_path_factory.mktemp("verify") / "run")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_flipped_byte_of_any_sealed_shard_is_found_and_named(template, data):
    files = [file for file in shards(template) if {"train", "eval"} & set(file.parts) and "examples" not in file.parts]
    sealed = [file for file in files if "segments" not in file.parts and "analysis" not in file.parts]
    file = data.draw(st.sampled_from(sealed))
    position = data.draw(st.integers(0, file.stat().st_size - 1))
    bits = data.draw(st.integers(1, 255))
    flip(file, position, bits)
    try:
        found = verify(template)
    finally:
        flip(file, position, bits)
    assert {problem.file for problem in found} == {file}
    array, _, chunk = file.relative_to(template).as_posix().partition("/c/")
    split, _, name = array.partition("/")
    index, *rest = map(int, chunk.split("/"))
    assert (found[0].split, found[0].array, found[0].index) == (split, name, index)
    assert found[0].layer == (rest[0] if name == "hidden_states" else None)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_flipped_byte_of_the_examples_is_found(template, data):
    """Of texts, ids and labels that are padded or compressed, a byte that changes nothing is none."""
    file = data.draw(st.sampled_from(shards(template / "train/examples")))
    position = data.draw(st.integers(0, file.stat().st_size - 1))
    before = content_of(template)
    flip(file, position)
    try:
        found = verify(template)
        try:
            unchanged = content_of(template) == before
        except StoreError:
            unchanged = False
    finally:
        flip(file, position)
    assert unchanged or found
    assert all(problem.file in (file, *file.parents) for problem in found)


def content_of(path):
    train = open_run(path).train
    texts = {name: column[:] for name, column in train.text.items()}
    ids = [part.tolist() for part in train.token_ids[:]]
    return texts, ids, train.labels.tolist(), train.length.tolist()


@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_shard_that_was_cut_short_is_named_with_its_rows(run, kept):
    without_checksums(run)
    file = run / "train/hidden_states/c/1/1/1/0"
    os.truncate(file, kept if kept >= 0 else file.stat().st_size + kept)
    (problem,) = verify(run)
    assert (problem.file, problem.split, problem.array) == (file, "train", "hidden_states")
    assert (problem.index, problem.layer, problem.rows) == (1, 1, range(8, 10))
    assert "does not end in an index" in problem.what


def test_a_damaged_shard_costs_exactly_its_own_rows(run):
    before = open_run(run).train.hidden_states[:]
    os.truncate(run / "train/hidden_states/c/1/1/1/0", 10)
    (problem,) = verify(run)
    hidden_states = open_run(run).train.hidden_states
    lost = problem.rows
    assert 0 < len(lost) < 10
    for index in range(3):
        for layer in range(2):
            for example in range(10):
                if (index, layer) == (1, 1) and example in lost:
                    with pytest.raises(StoreError, match=str(problem.file)):
                        hidden_states[index, layer, example]
                else:
                    np.testing.assert_array_equal(hidden_states[index, layer, example], before[index, layer, example])


def test_bytes_too_many_in_a_shard_are_found_also_without_checksums(run):
    without_checksums(run)
    file = run / "train/loss/c/0/0"
    content = file.read_bytes()
    file.write_bytes(b"1234" + content)
    (problem,) = verify(run)
    assert problem.file == file
    assert "holds 44 bytes of chunks, but its index speaks of 40" in problem.what


def test_compressed_chunks_are_decoded(run):
    file = run / "train/examples/text/a_sentence/values/c/0"
    flip(file, 2)
    problems = verify(run)
    assert {problem.file for problem in problems} == {file}
    assert problems[0].array == "text/a_sentence/values"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("lost", ["logits/c/0/1/0", "logits/c/0", "step/c/1", "hidden_states/c/1/0", "visits/c/0"])
def test_missing_shards_are_named(run, lost, known):
    if not known:
        without_checksums(run)
    gone = run / "train" / lost
    files = set(shards(gone)) if gone.is_dir() else {gone}
    assert files
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    problems = [problem for problem in verify(run) if problem.file.name != "zarr.json"]
    assert {problem.file for problem in problems} == files
    assert {problem.what for problem in problems} == {"this shard is missing"}


def test_a_whole_array_that_is_gone_is_missed_where_the_commits_know_of_it(run):
    files = set(shards(run / "train/logits"))
    shutil.rmtree(run / "train/logits")
    assert {problem.file for problem in verify(run)} == files


def test_a_shard_that_the_commit_does_not_know_of_is_named(run):
    manifest = run / "train/commits/p0000/zarr.json"
    change(manifest, lambda metadata: metadata["attributes"]["checksums"].pop("loss/c/0/0"))
    assert [(problem.file, problem.what) for problem in verify(run)] == [
        (run / "train/loss/c/0/0", "the commit does not know of this shard")
    ]
    with_checksums(run)
    beyond = run / "train/loss/c/0/9"
    shutil.copyfile(run / "train/loss/c/0/0", beyond)
    assert [(problem.file, problem.what) for problem in verify(run)] == [
        (beyond, "this shard lies outside of its array")
    ]


# Commits


@pytest.mark.parametrize(
    ("key", "value"),
    [("n_seen", 9), ("n_repeated", 1), ("n_never", 3), ("first_step", 1), ("last_step", 7), ("pass", 5)],
)
def test_a_manifest_that_is_not_of_its_data_is_named(run, key, value):
    manifest = run / "train/commits/p0000/zarr.json"
    change(manifest, lambda metadata: metadata["attributes"].update({key: value}))
    (problem,) = verify(run)
    assert (problem.file, problem.index) == (manifest, 0)
    assert str(value) in problem.what


def test_a_manifest_of_another_number_of_examples_is_named(run):
    manifest = run / "train/commits/p0000/zarr.json"
    change(manifest, lambda metadata: metadata["attributes"].update(n_examples=8))
    assert said(run) == ["train, pass 0: it speaks of 8 examples, expected 10 (train/commits/p0000/zarr.json)"]


def test_a_manifest_without_its_counts_is_named(run):
    manifest = run / "train/commits/p0001/zarr.json"
    change(manifest, lambda metadata: metadata["attributes"].pop("n_seen"))
    assert said(run) == ["train, pass 1: its attributes lack n_seen (train/commits/p0001/zarr.json)"]


def test_visits_and_step_must_agree(tmp_path):
    two_epochs(tmp_path, seal=True)
    without_checksums(tmp_path)
    file = tmp_path / "train/visits/c/1/0"
    content = np.frombuffer(file.read_bytes()[:40], "<i4").copy()
    content[[0, 6]] = content[[6, 0]]  # one was seen, the other never
    file.write_bytes(content.tobytes() + file.read_bytes()[40:])
    assert said(tmp_path) == [
        "train/step, pass 1: step and visits disagree on which examples were seen (train/commits/p0001/zarr.json)"
    ]


def test_a_manifest_whose_counts_are_no_integers_is_named(run):
    manifest = run / "train/commits/p0001/zarr.json"
    change(manifest, lambda metadata: metadata["attributes"].update(n_examples="10"))
    assert said(run) == ["train, pass 1: its n_examples is '10', expected an integer (train/commits/p0001/zarr.json)"]


# Metadata


@pytest.mark.parametrize("node", ["train", "train/logits", "train/commits/p0000", "attempts/a0000_r0000", "eval"])
def test_metadata_that_is_no_json_is_named_and_the_rest_is_looked_at(run, node):
    (run / node / "zarr.json").write_text("{")
    flip(run / "analysis/train/quality/score/c/0", -1)
    found = verify(run)
    assert Path(run / node / "zarr.json") in {problem.file for problem in found}
    assert run / "analysis/train/quality/score/c/0" in {problem.file for problem in found}


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda array: array.update(dimension_names=["epoch", "class", "example"]), "its dimension_names is"),
        (lambda array: array.update(data_type="float64"), "its data_type is 'float64', expected 'float32'"),
        (lambda array: array.update(fill_value=0), "its fill_value is 0, expected 'NaN'"),
        (lambda array: array.update(shape=[2, 10]), "it has 2 dimensions"),
        (lambda array: array.update(shape=[2, 12, 3]), "it has room for 12 examples, expected 10"),
        (lambda array: array.update(shape=[1, 10, 3]), "its shape (1, 10, 3) does not cover this pass"),
        (lambda array: array["attributes"].clear(), "it has no description"),
        (lambda array: array.pop("codecs"), "its metadata is not that of an array of shards"),
        (lambda array: array["codecs"][0]["configuration"].update(index_location="start"), "its codecs is"),
    ],
)
def test_metadata_of_an_array_is_compared_with_the_schema(run, edit, expected):
    file = run / "train/logits/zarr.json"
    change(file, edit)
    assert [problem for problem in verify(run) if problem.file == file and expected in problem.what]


def test_attributes_that_a_group_must_have_are_missed(run):
    change(run / "eval/zarr.json", lambda group: group["attributes"].pop("mode"))
    change(run / "attempts/a0000_r0000/zarr.json", lambda group: group["attributes"].pop("complete"))
    assert said(run) == [
        "its attributes lack complete (attempts/a0000_r0000/zarr.json)",
        "eval: its attributes lack mode (eval/zarr.json)",
    ]


# Segments


@pytest.fixture
def segment(run):
    (found,) = (run / "train/segments/a0000_r0000").glob("p0002_*")
    return found


def test_a_damaged_segment_is_named(run, segment):
    file = segment / "hidden_states/c/0/0/0"
    os.truncate(file, 10)
    (problem,) = verify(run)
    assert (problem.file, problem.array, problem.index, problem.rows) == (file, "hidden_states", 2, range(10))


def test_a_segment_keeps_checksums_too_if_it_says_so(run, segment):
    sums = checksums_below([segment], segment)
    change(segment / "zarr.json", lambda group: group["attributes"].update(checksums=sums))
    assert verify(run) == []
    for file in shards(segment):
        flip(file, 0)
        assert {problem.file for problem in verify(run)} == {file}
        flip(file, 0)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: (path / "loss/c/0").unlink(), "loss/c/0: this shard of the segment is missing"),
        (lambda path: shutil.rmtree(path / "step"), "step: this array of the segment is missing"),
        (
            lambda path: change(path / "zarr.json", lambda group: group["attributes"].update(n_rows=9)),
            "logits/zarr.json: it has 10 rows, expected 9",
        ),
        (
            lambda path: change(path / "zarr.json", lambda group: group["attributes"].update(rank=3)),
            "zarr.json: it says to be the segment a0000_r0003/p0002_s",
        ),
        (
            lambda path: change(path / "zarr.json", lambda group: group["attributes"].pop("of_pass")),
            "zarr.json: its attributes lack of_pass",
        ),
        (lambda path: flip(path / "example/c/0", 7, 64), "example/c/0: it holds ids"),
    ],
)
def test_whatever_is_wrong_with_a_segment_is_said(run, segment, damage, expected):
    damage(segment)
    found = [f"{problem.file.relative_to(segment)}: {problem.what}" for problem in verify(run)]
    assert [text for text in found if text.startswith(expected)], found


# Examples and results


def test_other_examples_than_those_of_the_fingerprint_are_found(run):
    without_checksums(run)
    flip(run / "train/examples/labels/c/0", 0)
    (problem,) = verify(run)
    assert problem.file == run / "train/examples"
    assert "fingerprint" in problem.what


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0, 1, 3, 2, 10, 15, 21, 28, 36, 45], "do not rise"),
        ([1, 1, 1, 3, 6, 10, 15, 21, 28, 36, 45], "do not rise"),
        ([0, 0, 1, 3, 6, 10, 15, 21, 28, 36, 40], "end at 40, but there are 45 values"),
    ],
)
def test_offsets_must_rise_to_the_number_of_values(tmp_path, values, expected):
    path = whole_run(tmp_path / "run")  # in one chunk
    without_checksums(path)
    file = path / "train/examples/input_ids/offsets/c/0"
    content = np.array(values, "<i8").tobytes()
    file.write_bytes(content + file.read_bytes()[len(content) :])
    assert expected in verify(path)[0].what


def test_examples_with_checksums_name_the_file(run):
    group = run / "train/examples"
    sums = checksums_below([group], group)
    change(group / "zarr.json", lambda metadata: metadata["attributes"].update(checksums=sums))
    assert verify(run) == []
    flip(group / "labels/c/0", 0)
    assert [problem.file for problem in verify(run)] == [group / "labels/c/0"]


def test_missing_shards_of_examples_and_results_are_named(run):
    lost = [run / "train/examples/labels/c/0", run / "analysis/train/quality/score/c/0", run / "tokenizer/text/token"]
    lost[2] = lost[2] / "offsets/c/0"
    for file in lost:
        file.unlink()
    assert {problem.file for problem in verify(run)} == set(lost)


# While it is being recorded


def seal_all(path):
    for index in range(2):
        seal_pass(path, "train", index)
    remove_sealed_segments(path, "train")


def resume(path):
    create_run(path, {}, start_step=1, resume=True)


@pytest.mark.parametrize(("sealed", "happens"), [(False, seal_all), (True, resume)])
def test_a_pass_may_be_sealed_or_taken_back_at_any_moment_of_looking(tmp_path, sealed, happens):
    template = tmp_path / "template"
    writer = new_run(template, 3)
    for index in range(2):
        writer.begin_pass("train", index, {"epoch": index, "step": index})
        writer.log("train", rows_of([0, 2], index, n_layers=0))
        writer.flush()
    if sealed:
        seal_all(template)
    for moment in range(0, 10_000, 3):
        path = shutil.copytree(template, tmp_path / f"{moment}")
        with before_operation(moment, path, partial(happens, path), READING) as watch:
            assert verify(path) == []
        shutil.rmtree(path)
        if not watch.happened:
            break
    assert moment > 30


# Checksums


@given(content=st.binary(max_size=3000))
@settings(max_examples=30)
def test_a_checksum_is_the_crc32c_of_the_whole_file(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("sums") / "file"
    file.write_bytes(content)
    assert checksum(file) == google_crc32c.value(content)


@pytest.mark.parametrize(
    ("content", "expected"), [(b"123456789", 0xE3069283), (bytes(range(32)), 0x46DD794E), (b"\xff" * 32, 0x62A8AB43)]
)
def test_the_checksum_of_known_files(content, expected, tmp_path):
    """The check value of the CRC catalogue, and two of RFC 3720, B.4."""
    (tmp_path / "file").write_bytes(content)
    assert checksum(tmp_path / "file") == expected


def test_a_checksum_of_more_than_one_block(tmp_path):
    content = np.random.default_rng(0).bytes((2 << 20) + 5)
    (tmp_path / "file").write_bytes(content)
    assert checksum(tmp_path / "file") == google_crc32c.value(content)
