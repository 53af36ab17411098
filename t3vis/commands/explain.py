"""The command that explains a prediction: which tokens it rests on, and which method to believe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t3vis.checkpointed import pass_with_checkpoint
from t3vis.coloured_tokens import Row, ansi, page, printable
from t3vis.commands.arguments import Commands, add_command, opened_split
from t3vis.commands.output import opened, table, terminal_width
from t3vis.errors import ConfigurationError

if TYPE_CHECKING:
    from t3vis.probing.encoded import Encoded
    from t3vis.probing.saliency import Saliency
    from t3vis.probing.targets import Target
    from t3vis.store.reader import Run, Split


def add(commands: Commands) -> None:
    """Declare ``explain``."""
    command = add_command(
        commands,
        "explain",
        _explain,
        "show which tokens a prediction rests on",
        "t3vis explain runs/sst2.zarr --example 17 --method cp_lrp --against 0",
    )
    command.add_argument("run", metavar="RUN|MODEL", help="path of a run, or folder of a model (then with --text)")
    command.add_argument("--split", default="train", help="train, or the name of an evaluation set (%(default)s)")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--example", type=int, metavar="N", help="an example of the run, by its number")
    what.add_argument("--text", help="a text of your own")
    what.add_argument("--rank-methods", type=int, metavar="N", help="which method to believe, on the first N examples")
    command.add_argument("--text-pair", metavar="TEXT", help="the second of two texts that are read together")
    command.add_argument("--epoch", type=int, metavar="E", help="whose checkpoint is explained (the last that has one)")
    command.add_argument("--model", type=Path, metavar="FOLDER", help="a checkpoint from elsewhere, with its tokenizer")
    command.add_argument("--against", metavar="E|FOLDER", help="an epoch, or a checkpoint, that stands beside it")
    command.add_argument(
        "--method", help="cp_lrp, attnlrp, integrated_gradients, ... (default: cp_lrp, of decoders attnlrp)"
    )
    command.add_argument("--class", dest="class_name", metavar="NAME", help="what is explained (what is predicted)")
    command.add_argument("--token", type=int, metavar="N", help="whose class, where each token has one")
    command.add_argument("--html", type=Path, metavar="FILE", help="write the coloured text as a page")
    command.add_argument("--plot", type=Path, metavar="FILE", help="write a figure: PNG, SVG or PDF")


def _explain(options: argparse.Namespace) -> None:
    source = _Source(options)
    if options.rank_methods is not None:
        print(table(source.ranked_methods(options.rank_methods), terminal_width()))
        return
    example, title = source.example()
    target = source.target(example)
    found, names = [source.saliency(source.model, example, target)], [source.model_name]
    if options.against is not None:
        folder, name = source.checkpoint(options.against)
        found.append(source.saliency(_loaded(folder), example, target))
        names.append(name if name != names[0] else str(folder))
    rows = [_row(each, name) for each, name in zip(found, names, strict=True)]
    print(title)
    for row in rows:
        print("\n".join([row.heading, *row.notes]))
        if sys.stdout.isatty():
            print(ansi(row))
    if not sys.stdout.isatty():
        print(table(token_rows(found, names), terminal_width()))
    if options.html is not None:
        with opened(options.html) as file:
            file.write(page(title, rows))
        print(f"coloured text written to {options.html}")
    if options.plot is not None:
        _write_plot(found, names, title, options.plot)
        print(f"figure written to {options.plot}")


class _Source:
    """Where model and example come from, as the options say."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._run: Run | None = None
        self._split: Split | None = None
        if (Path(options.run) / "config.json").is_file():
            if options.text is None:
                raise ConfigurationError(f"{options.run} is a model, which has no examples; pass --text.")
            self.model_folder, self.model_name = Path(options.run), Path(options.run).name
        else:
            self._run, self._split = opened_split(options)
            self.model_folder, self.model_name = self.checkpoint(options.model or options.epoch)
        self.model = _loaded(self.model_folder)
        self.tokenizer = _tokenizer(self.model_folder)

    def checkpoint(self, which: str | Path | int | None) -> tuple[Path, str]:
        """The folder of a model and what to call it: by its path, by its epoch, or that of the last epoch with one.

        Raises
        ------
        ProbingError
            If no checkpoint of the epoch is there.
        """
        if which is not None and not str(which).isdecimal():
            return Path(str(which)), Path(str(which)).name
        chosen, found = pass_with_checkpoint(self._chosen_split, None if which is None else int(str(which)))
        return found.path, f"epoch {chosen.index}"

    def example(self) -> tuple[Encoded, str]:
        """What is explained, and a line about it."""
        from t3vis.probing.encoded import encoded

        options = self._options
        if options.text is not None:
            if self.tokenizer is None:
                raise ConfigurationError(f"{self.model_folder} has no tokenizer, without which a text cannot be read.")
            return encoded(self.tokenizer, options.text, options.text_pair), "a text of your own"
        return self.recorded(options.example), f"example {options.example} of {self._chosen_split.name}"

    def recorded(self, number: int) -> Encoded:
        """An example of the run."""
        from t3vis.recorded_example import recorded_example

        split = self._chosen_split
        if not 0 <= number < split.n_examples:
            raise ConfigurationError(f"example {number} of {split.name}, which has {split.n_examples:,}.")
        return recorded_example(self._chosen_run, split, number, self.tokenizer)

    def target(self, example: Encoded) -> Target:
        """What is explained: the class that was named, else what the model predicts."""
        from t3vis.probing.predicted import predicted_target
        from t3vis.probing.targets import class_target, token_target

        named, token = self._options.class_name, self._options.token
        if named is None:
            return predicted_target(self.model, example, self.tokenizer, position=token)
        names = [self.model.config.id2label[i] for i in range(len(self.model.config.id2label))]
        if named in names:
            index = names.index(named)
        elif named.isdecimal() and int(named) < len(names):
            index = int(named)
        else:
            raise ConfigurationError(f"--class {named}: the model has the classes {', '.join(names)}.")
        return class_target([index], names) if token is None else token_target(token, [index], names)

    def saliency(self, model: Any, example: Encoded, target: Target) -> Saliency:
        """The explanation by the method that was asked for."""
        from t3vis.probing.saliency import saliencies

        return saliencies(model, [example], [target], method=self._options.method, tokenizer=self.tokenizer)[0]

    def ranked_methods(self, n_examples: int) -> list[dict[str, str]]:
        """The table of how faithful each method is to this model on these examples."""
        from t3vis.probing.faithfulness import faithfulness

        if n_examples < 1:
            raise ConfigurationError(f"--rank-methods {n_examples}: expected a number of examples, at least 1.")
        examples = [self.recorded(i) for i in range(min(n_examples, self._chosen_split.n_examples))]
        targets = [self.target(example) for example in examples]
        return faithfulness(self.model, examples, targets, tokenizer=self.tokenizer).rows()

    @property
    def _chosen_run(self) -> Run:
        if self._run is None:
            raise ConfigurationError("a model has no examples; give a run.")
        return self._run

    @property
    def _chosen_split(self) -> Split:
        if self._split is None:
            raise ConfigurationError("a model has no examples; give a run.")
        return self._split


def token_rows(found: list[Saliency], names: list[str]) -> list[dict[str, str]]:
    """A row for each token: its characters, and what it contributes in each explanation."""
    example = found[0].example
    return [
        {
            "position": str(i),
            "characters": f"{start}-{end}" if start >= 0 else "",
            **{name: f"{each.values[0, i]:+.4f}" for each, name in zip(found, names, strict=True)},
            "token": printable(example.tokens[i]),
        }
        for i, (start, end) in enumerate(example.offsets.tolist())
    ]


def _row(found: Saliency, name: str) -> Row:
    number, rest, error = found.numbers[0], found.rest[0], found.error[0]
    notes = [f"method {found.method}; the tokens add up to {found.values[0].sum():+.3f}"]
    if rest == rest:  # NaN where the method does not say
        what = "the baseline" if found.steps else "biases and positions"
        kind = "completeness" if found.steps else "conservation"
        notes[0] += f", {what} take {rest:+.3f} ({rest / number:.0%}); {kind} error {error:.1e}"
        notes[0] += f" with {found.steps} steps" if found.steps else ""
    heading = f"{name} says {found.target[0].name} with {number:+.3f}"
    return Row(heading, notes, found.example.tokens, found.example.gaps(), found.values[0])


def _write_plot(found: list[Saliency], names: list[str], title: str, path: Path) -> None:
    import numpy as np

    from t3vis.plots import write_figure
    from t3vis.plots_tokens import plot_tokens

    values = np.stack([each.values[0] for each in found])
    if len(found) > 1:
        values, names = np.concatenate([values, values[-1:] - values[:1]]), [*names, "change"]
    heading = f"{title}: {found[0].target[0].name}, {found[0].method}"
    write_figure(plot_tokens(values, found[0].example.tokens, columns=names, title=heading), path)


def _loaded(folder: Path) -> Any:
    from t3vis.probing.model import load_model

    return load_model(folder)


def _tokenizer(folder: Path) -> Any:
    from t3vis.recorded_example import tokenizer_of

    return tokenizer_of(folder)
