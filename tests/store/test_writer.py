import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3vis.errors import ConfigurationError, RecordingError
from t3vis.store import schema, segments
from t3vis.store.commits import committed_passes
from t3vis.store.reader import open_run
from t3vis.store.seal import remove_sealed_segments, seal_pass
from t3vis.store.writer import create_run, join_run

from .operations import files_of_at_most, killed_before_each
from .recordings import Expected, new_run, rows_of, split_attributes, two_epochs

# What is written is what is read


@st.composite
def histories(draw):
    """Sizes of a split, and its epochs as lists of batches of ids, each epoch sealed or not."""
    n_examples = draw(st.integers(1, 12))
    ids = st.integers(0, n_examples - 1)
    batches = st.lists(st.lists(ids, min_size=1, max_size=7), min_size=1, max_size=5)
    epochs = draw(
        st.lists(st.tuples(batches, st.sampled_from(["buffered", "flushed", "sealed"])), min_size=1, max_size=3)
    )
    sizes = {
        "n_classes": draw(st.integers(1, 4)),
        "n_layers": draw(st.integers(0, 3)),
        "hidden": draw(st.integers(1, 5)),
    }
    return draw(st.sampled_from([n_examples, None])), epochs, sizes


@given(history=histories())
@settings(max_examples=50)
def test_every_array_is_what_a_dictionary_says(tmp_path_factory, history):
    n_examples, epochs, sizes = history
    path = tmp_path_factory.mktemp("runs") / "run"
    writer, expected = new_run(path, n_examples), Expected(n_examples)
    step = 0
    for index, (batches, state) in enumerate(epochs):
        writer.begin_pass("train", index, {"epoch": index, "step": step})
        for ids in batches:
            expected.log(writer, index, rows_of(ids, step, **sizes))
            if state != "buffered":
                writer.flush()
            step += 1
        if state == "sealed":
            seal_pass(path, "train", index)
            remove_sealed_segments(path, "train")
    writer.flush()
    expected.check(open_run(path).train)


@st.composite
def attempts(draw):
    """Starts of a training over four-step epochs: first step, number of steps, and whether epochs are sealed."""
    done, found = 0, []
    for _ in range(draw(st.integers(2, 4))):
        start = draw(st.integers(0, done))
        n_steps = draw(st.integers(0, 9))
        found.append((start, n_steps, draw(st.booleans())))
        done = start + n_steps
    return found


@given(data=st.data())
@settings(max_examples=40)
def test_the_rows_that_count_are_those_the_newest_weights_came_through(tmp_path_factory, data):
    """Attempts start from any checkpoint that was ever saved, also one of a branch that was left before."""
    path = tmp_path_factory.mktemp("runs") / "run"
    histories: list[dict[int, float]] = []  # of each attempt: which attempt's row its weights saw at each step
    saved: dict[int, int] = {}  # step -> the attempt that wrote the checkpoint last
    for attempt in range(data.draw(st.integers(2, 5))):
        start = data.draw(st.sampled_from([0, *sorted(saved)]))
        parent = histories[saved[start]] if start else {}
        writer = create_run(path, {}, start_step=start, resume=True)
        writer.add_split("train", split_attributes(8))
        history = {step: owner for step, owner in parent.items() if step < start}
        for step in range(start, start + data.draw(st.integers(0, 9))):
            if step == start or step % 4 == 0:
                writer.begin_pass("train", step // 4, {"epoch": step // 4, "step": step})
            ids = np.array([2 * (step % 4), 2 * (step % 4) + 1])
            writer.log("train", {"example": ids, "step": np.full(2, step), "loss": np.full(2, attempt, np.float32)})
            history[step] = attempt
            if data.draw(st.booleans()):
                writer.save_point(step + 1)
                saved[step + 1] = attempt
            if step % 4 == 3:
                writer.flush()
                if data.draw(st.booleans()):
                    seal_pass(path, "train", step // 4)
        writer.flush()
        histories.append(history)
        train = open_run(path).train
        assert [record.index for record in train.passes] == sorted({step // 4 for step in history})
        expected = np.full((max(history, default=-4) // 4 + 1, 8), np.nan, np.float32)
        for step, owner in history.items():
            expected[step // 4, 2 * (step % 4) : 2 * (step % 4) + 2] = owner
        if history:
            np.testing.assert_array_equal(train.loss[:], expected)


@given(attempts=attempts(), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_after_resuming_each_row_is_that_of_the_attempt_that_counts(tmp_path_factory, attempts, seed):
    path = tmp_path_factory.mktemp("runs") / "run"
    expected = Expected(8)
    rng = np.random.default_rng(seed)
    for number, (start, n_steps, seal) in enumerate(attempts):
        sealed = set(committed_passes(path / "train"))
        writer = create_run(path, {}, start_step=start, resume=True)
        writer.add_split("train", split_attributes(8))
        expected.take_back(start, {index for index in sealed if expected.last_step(index) >= start})
        expected.check(open_run(path).train)
        for step in range(start, start + n_steps):
            index = step // 4
            if step == start or step % 4 == 0:
                writer.begin_pass("train", index, {"epoch": index, "step": step})
            expected.log(writer, index, rows_of(rng.integers(0, 8, 3), step, number))
            if step % 4 == 3 or step == start + n_steps - 1:
                writer.flush()
                if seal:
                    seal_pass(path, "train", index)
                    remove_sealed_segments(path, "train", before=index)
        writer.flush()
        expected.check(open_run(path).train)


def test_several_ranks_record_one_epoch(tmp_path):
    first, expected = new_run(tmp_path, 9), Expected(9)
    ranks = [first, *(join_run(tmp_path, rank=rank, n_ranks=3) for rank in (1, 2))]
    for writer in ranks[1:]:
        writer.begin_pass("train", 0, {"epoch": 0, "step": 0})
    for step in range(3):
        for rank, writer in enumerate(ranks):
            ids = [3 * rank + step, 0] if step == 2 else [3 * rank + step]
            expected.log(writer, 0, rows_of(ids, step, rank))
    for writer in reversed(ranks):
        writer.flush()
    expected.check(open_run(tmp_path).train)
    first.seal("train", 0)
    for writer in reversed(ranks):
        writer.close()
    assert committed_passes(tmp_path / "train") == [0]
    expected.check(open_run(tmp_path).train)
    found = [(attempt["attempt"], attempt["rank"]) for attempt in segments.attempts(tmp_path)]
    assert found == [(0, 0), (0, 1), (0, 2)]


def test_evaluations_after_the_step_resumed_from_are_taken_back(tmp_path):
    writer = new_run(tmp_path)
    writer.add_split("eval", split_attributes(3, "eval"))
    for index, step in enumerate((0, 5, 10, 15)):
        writer.begin_pass("eval", index, {"epoch": step / 10, "step": step})
        writer.log("eval", rows_of([0, 1, 2], step))
        writer.flush()
        if index < 3:
            seal_pass(tmp_path, "eval", index)
    resumed = create_run(tmp_path, {}, start_step=5, resume=True)
    assert resumed.next_pass("eval") == 2
    evaluations = open_run(tmp_path).evals["eval"]
    assert evaluations.epochs.tolist() == [0, 0.5]
    assert evaluations.step[:].tolist() == [[0] * 3, [5] * 3]


def test_an_attempt_that_only_evaluates_takes_nothing_back(tmp_path):
    _, expected = two_epochs(tmp_path)
    create_run(tmp_path, {}, start_step=None, resume=True).close()
    expected.check(open_run(tmp_path).train)


def test_an_epoch_that_was_sealed_before_its_end_goes_on(tmp_path):
    """As when max_steps ends training within an epoch, and a later training goes on from there."""
    writer, expected = two_epochs(tmp_path)
    for index in range(2):
        writer.seal("train", index)
    writer.close()
    resumed = create_run(tmp_path, {}, start_step=4, resume=True)
    resumed.begin_pass("train", 1, {"epoch": 1, "step": 4})
    expected.log(resumed, 1, rows_of([6, 2, 0], 4))
    resumed.flush()
    train = open_run(tmp_path).train
    expected.check(train)
    assert [record.sealed for record in train.passes] == [True, False]
    resumed.seal("train", 1)
    resumed.close()
    expected.check(train)
    assert [(record.step, record.last_step, record.sealed) for record in train.passes] == [(0, 1, True), (2, 4, True)]


def test_an_epoch_that_was_taken_back_as_a_whole_is_gone(tmp_path):
    _, expected = two_epochs(tmp_path)
    create_run(tmp_path, {}, start_step=1, resume=True)
    expected.take_back(1, set())
    train = open_run(tmp_path).train
    expected.check(train)
    assert train.logits.shape[0] == 1
    assert segments.unsealed_passes(tmp_path / "train") == [0]


def test_killed_at_any_moment_of_resuming_another_attempt_resumes(tmp_path):
    template = tmp_path / "template"
    _, expected = two_epochs(template, seal=True)
    remove_sealed_segments(template, "train", before=1)
    expected.take_back(3, {1})

    def copy(number):
        return shutil.copytree(template, tmp_path / f"{number}")

    def act(path):
        writer = create_run(path, {}, start_step=3, resume=True)
        writer.begin_pass("train", 1, {"epoch": 1, "step": 3})

    for path in killed_before_each(copy, act):
        open_run(path).summary()
        act(path)
        expected.check(open_run(path).train)
        assert open_run(path).train.passes[1].step == 2


# Who may write where


def test_what_is_no_run_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ConfigurationError, match="is not a t3vis run"):
            create_run(tmp_path, {}, **options)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ConfigurationError, match="is not a t3vis run"):
        create_run(tmp_path / "thesis.txt", {}, overwrite=True)


def test_a_run_that_is_there_is_resumed_or_overwritten_by_name_only(tmp_path):
    _, expected = two_epochs(tmp_path)
    with pytest.raises(ConfigurationError, match=r"resume=True.*overwrite=True"):
        create_run(tmp_path, {})
    expected.check(open_run(tmp_path).train)
    create_run(tmp_path, {"model": {"class": "Other"}}, overwrite=True)
    assert open_run(tmp_path).attributes["model"] == {"class": "Other"}
    assert open_run(tmp_path).splits == {}


def test_an_empty_directory_may_become_a_run(tmp_path):
    create_run(tmp_path, {})
    assert open_run(tmp_path).splits == {}


@pytest.mark.parametrize("path", ["file/run", "file/deep/run"])
def test_a_path_that_cannot_be_written_is_said_before_anything_else(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=f"cannot be written at {re.escape(str(tmp_path / path))}"):
        create_run(tmp_path / path, {})


def test_a_disk_that_takes_no_byte_is_said_before_anything_else(tmp_path):
    with files_of_at_most(0), pytest.raises(ConfigurationError, match=f"cannot be written.*{re.escape(str(tmp_path))}"):
        create_run(tmp_path / "run", {})
    create_run(tmp_path / "run", {})


def test_another_dataset_is_refused(tmp_path):
    writer = new_run(tmp_path)
    with pytest.raises(ConfigurationError, match=r"found 11 examples with fingerprint g, expected 10 with f"):
        writer.add_split("train", split_attributes(11, fingerprint="g"))


def test_other_settings_of_an_array_are_refused(tmp_path):
    writer = new_run(tmp_path)
    writer.describe("train", {"task": "single_label", "arrays": {"hidden_states": {"layers": [0, 1]}}})
    writer.describe("train", {"task": "single_label", "arrays": {"loss": {"loss": "cross-entropy"}}})
    assert open_run(tmp_path).train.layers == [0, 1]
    with pytest.raises(ConfigurationError, match=r"\[1\].*begun with.*\[0, 1\]"):
        writer.describe("train", {"arrays": {"hidden_states": {"layers": [1]}}})


@pytest.mark.parametrize("seal", [False, True])
def test_rows_of_another_model_are_refused_when_the_first_come(tmp_path, seal):
    two_epochs(tmp_path, seal=seal)
    resumed = create_run(tmp_path, {}, start_step=3, resume=True)
    resumed.begin_pass("train", 1, {})
    with pytest.raises(ConfigurationError, match=r"hidden_states.*\(2, 5\).*\(2, 4\)"):
        resumed.log("train", rows_of([0], 3, hidden=5))


@pytest.mark.parametrize(
    "rows",
    [
        rows_of([10], 0),
        rows_of([0, -1], 0),
        {**rows_of([0, 1], 0), "loss": np.zeros(1, np.float32)},
        {**rows_of([0, 1], 0), "loss": np.zeros((2, 1), np.float32)},
        rows_of([0, 1], 0, n_classes=4),
    ],
)
def test_rows_that_would_spoil_the_others_are_refused_and_counted(tmp_path, rows):
    writer, expected = new_run(tmp_path), Expected(10)
    expected.log(writer, 0, rows_of([5], 0))
    writer.flush()
    with pytest.raises(RecordingError, match="rows of train cannot be recorded"):
        writer.log("train", rows)
    expected.log(writer, 0, rows_of([6], 1))
    writer.flush()
    seal_pass(tmp_path, "train", 0)
    run = open_run(tmp_path)
    expected.check(run.train)
    assert run.missing_rows == len(rows["example"])


# Sealing in the background


def test_closing_waits_until_everything_is_sealed_and_tidied(tmp_path):
    writer, expected = two_epochs(tmp_path)
    writer.seal("train", 0)
    writer.seal("train", 1)
    writer.close()
    assert committed_passes(tmp_path / "train") == [0, 1]
    assert segments.passes_with_remains(tmp_path / "train") == []
    assert segments.attempts(tmp_path)[0]["finished"] is not None
    expected.check(open_run(tmp_path).train)


def test_an_epoch_that_has_not_ended_is_not_sealed_by_closing(tmp_path):
    writer, expected = two_epochs(tmp_path)
    writer.seal("train", 0)
    writer.close()
    assert committed_passes(tmp_path / "train") == [0]
    expected.log(writer, 1, rows_of([6], 9))
    writer.flush()
    expected.check(open_run(tmp_path).train)


def test_a_sealer_that_dies_is_reported_and_the_run_read_from_its_segments(tmp_path, caplog):
    writer, expected = two_epochs(tmp_path)
    (tmp_path / "train/logits").write_text("in the way of the sealer")
    writer.seal("train", 0)
    writer.seal("train", 1)
    writer.close()
    assert "the run stays readable from its segments" in caplog.text
    assert str(tmp_path / "train/logits") in caplog.text
    assert committed_passes(tmp_path / "train") == []
    (tmp_path / "train/logits").unlink()
    expected.check(open_run(tmp_path).train)
    writer.close()
    assert committed_passes(tmp_path / "train") == [0, 1]
    expected.check(open_run(tmp_path).train)


def test_what_a_dead_trainer_had_not_sealed_the_next_writer_seals(tmp_path, caplog):
    writer, expected = two_epochs(tmp_path)
    (tmp_path / "train/logits").write_text("in the way of the sealer")
    writer.seal("train", 0)
    writer.close()
    (tmp_path / "train/logits").unlink()
    resumed = create_run(tmp_path, {}, start_step=4, resume=True)
    resumed.begin_pass("train", 1, {"epoch": 1, "step": 4})
    expected.log(resumed, 1, rows_of([0, 6], 4))
    resumed.close()
    assert committed_passes(tmp_path / "train") == [0]
    expected.check(open_run(tmp_path).train)


def test_an_epoch_that_a_later_attempt_goes_on_with_is_not_complete(tmp_path, caplog):
    writer, expected = two_epochs(tmp_path)
    (tmp_path / "train/logits").write_text("in the way of the sealer")
    writer.seal("train", 1)
    writer.close()
    (tmp_path / "train/logits").unlink()
    resumed = create_run(tmp_path, {}, start_step=3, resume=True)
    expected.take_back(3, set())
    resumed.begin_pass("train", 1, {"epoch": 1, "step": 3})
    expected.log(resumed, 1, rows_of([0], 3))
    resumed.close()
    assert committed_passes(tmp_path / "train") == []
    expected.check(open_run(tmp_path).train)


def test_resuming_waits_for_a_sealer_that_outlived_its_trainer(tmp_path):
    """Otherwise the pass would be committed with the rows that the resumed attempt takes again."""
    _, expected = two_epochs(tmp_path)
    code = """if True:
        import sys, time
        from pathlib import Path
        from t3vis.store.commits import locked
        from t3vis.store.seal import seal_pass
        run = Path(sys.argv[1])
        with locked(run):
            print("holding", flush=True)
            time.sleep(0.5)
            seal_pass(run, "train", 1)
    """
    command = [sys.executable, "-c", code, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sealer:
        assert sealer.stdout.readline() == "holding\n"
        resumed = create_run(tmp_path, {}, start_step=3, resume=True)
        resumed.begin_pass("train", 1, {"epoch": 1, "step": 3})
        expected.take_back(3, {1})
        expected.log(resumed, 1, rows_of([6, 7], 3))
        resumed.flush()
    assert sealer.returncode == 0
    expected.check(open_run(tmp_path).train)


def test_the_sealer_inherits_the_lock(tmp_path):
    """A trainer killed just after it has started a sealer leaves no moment in which the run is unlocked."""
    _, expected = two_epochs(tmp_path)
    code = f"""if True:
        import os, signal
        from pathlib import Path
        from t3vis.store.sealer import Sealer
        Sealer(Path({str(tmp_path)!r})).start(["train:0", "train:1"])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", code], check=False)
    resumed = create_run(tmp_path, {}, start_step=4, resume=True)
    assert committed_passes(tmp_path / "train") == [0, 1]
    resumed.close()
    expected.check(open_run(tmp_path).train)


def test_describing_a_split_twice_writes_once(tmp_path):
    writer = new_run(tmp_path)
    writer.describe("train", {"task": "single_label"})
    node = Path(tmp_path / "train/zarr.json")
    before = node.stat().st_ino
    writer.describe("train", {"task": "single_label"})
    assert node.stat().st_ino == before
    assert schema.read_metadata(tmp_path / "train")["attributes"]["task"] == "single_label"


WRITE = """if True:
    import sys, time
    from pathlib import Path
    from t3vis.store.writer import create_run
    writer = create_run(Path(sys.argv[1]), {}, start_step=None, resume=True)
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("way", ["resume", "overwrite"])
def test_a_run_that_another_process_is_writing_is_left_to_it(tmp_path, way):
    writer, expected = two_epochs(tmp_path)
    writer.close()
    with subprocess.Popen([sys.executable, "-c", WRITE, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "writing\n"
            names = sorted(path.name for path in (tmp_path / "attempts").iterdir())
            with pytest.raises(ConfigurationError, match=r"is being written by another process; wait until"):
                create_run(tmp_path, {}, start_step=4, **{way: True})
            assert sorted(path.name for path in (tmp_path / "attempts").iterdir()) == names
        finally:
            other.kill()
    expected.check(open_run(tmp_path).train)
    create_run(tmp_path, {}, start_step=4, resume=True).close()
    expected.check(open_run(tmp_path).train)


def test_a_writer_that_its_own_process_has_left_behind_does_not_block_the_next(tmp_path):
    """As in a notebook, where a training was interrupted and is begun again."""
    interrupted, expected = two_epochs(tmp_path)
    resumed = create_run(tmp_path, {}, start_step=4, resume=True)
    resumed.close()
    expected.check(open_run(tmp_path).train)
    interrupted.begin_pass("train", 2, {})
    code = f"from t3vis.store.writer import *; create_run(Path({str(tmp_path)!r}), {{}}, resume=True)"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "is being written by another process" in refused.stderr


def test_a_process_that_does_not_see_the_run_of_the_first_one_says_so(tmp_path):
    with pytest.raises(ConfigurationError, match=r"process 1 finds no run at .* all processes"):
        join_run(tmp_path, rank=1, n_ranks=2)
    new_run(tmp_path).close()
    with pytest.raises(ConfigurationError, match=r"process 1 finds no run"):
        join_run(tmp_path, rank=1, n_ranks=2)
