"""The command that says what attention heads attend to."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t3vis.commands.arguments import Commands, add_command, opened_split
from t3vis.commands.output import beside, stem, table, terminal_width
from t3vis.errors import ConfigurationError, ProbingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from t3vis.analysis.attention_patterns import HeadPatterns
    from t3vis.analysis.syntax import RelationScores

N_ARCS = 50


def add(commands: Commands) -> None:
    """Declare ``attention``."""
    attention = add_command(
        commands,
        "attention",
        _attention,
        "what each attention head attends to: previous, next and same token, sentence, delimiters, punctuation",
        "t3vis attention runs/demo.zarr --model runs/demo-model",
    )
    attention.add_argument("run", metavar="RUN", nargs="?", help="path of the run whose examples are read")
    attention.add_argument("--split", default="train", help="train, or the name of an evaluation set (%(default)s)")
    attention.add_argument("--epoch", type=int, metavar="E", help="whose checkpoint to take (the last that has one)")
    attention.add_argument("--model", type=Path, metavar="FOLDER", help="take this model instead")
    attention.add_argument("--texts", type=Path, metavar="FILE", help="without RUN: a file of texts, one in each line")
    attention.add_argument(
        "--conllu", type=Path, metavar="FILE", help="without RUN: a file of parsed texts; tells syntactic relations too"
    )
    attention.add_argument("--examples", type=int, default=1000, metavar="N", help="read N at most (%(default)s)")
    attention.add_argument("--top", type=int, default=2, metavar="N", help="heads to name for each pattern")
    attention.add_argument(
        "--example", type=int, metavar="I", help="draw the weights of example I instead, of the head named by --head"
    )
    attention.add_argument("--head", type=_head, default=(0, 0), metavar="L.H", help="layer and head, such as 1.8")
    attention.add_argument("--output", type=Path, metavar="FILE", help="PNG, SVG or PDF (default: beside the run)")


def _head(text: str) -> tuple[int, int]:
    layer, _, head = text.partition(".")
    return int(layer), int(head)


def _attention(options: argparse.Namespace) -> None:
    from t3vis.plots import write_figure
    from t3vis.plots_attention import plot_head_patterns

    if options.example is not None:
        _one_example(options)
        return
    if options.run is not None:
        patterns, title, output = _of_run(options)
        relations = None
    else:
        patterns, relations = _of_texts(options)
        title = f"{options.model.name}: what each attention head attends to"
        output = Path(f"{options.model.name}-attention.png")
    print(strongest_table(patterns, options.top))
    print(clusters_line(patterns))
    if relations is not None:
        print("\n" + relations_table(relations))
    write_figure(plot_head_patterns(patterns, title=title), options.output or output)
    print(f"\nhead patterns written to {options.output or output}")


def _of_run(options: argparse.Namespace) -> tuple[HeadPatterns, str, Path]:
    from t3vis.analyze_attention import analyzed_attention  # torch takes seconds to load

    run, split = opened_split(options)
    patterns = analyzed_attention(
        run, split, pass_index=options.epoch, model=options.model, max_examples=options.examples
    )
    name = f"{stem(run)}-{split.name}"
    return patterns, f"{name}: what each attention head attends to", beside(run, f"{name}-attention.png")


def _of_texts(options: argparse.Namespace) -> tuple[HeadPatterns, RelationScores | None]:
    from t3vis.analysis.conllu import sentences
    from t3vis.analyze_attention import load_tokenizer
    from t3vis.probing.attention_patterns import attention_patterns, vocabulary_of
    from t3vis.probing.attention_relations import relation_scores
    from t3vis.probing.attention_texts import document_rows, text_rows
    from t3vis.probing.model import load_model

    if options.model is None or (options.texts is None) == (options.conllu is None):
        raise ConfigurationError("name a RUN, or else a --model FOLDER and either --texts or --conllu.")
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    known = vocabulary_of(tokenizer)
    if options.texts is not None:
        lines = [line for line in _lines(options.texts) if line.strip()][: options.examples]
        return attention_patterns(model, text_rows(lines, tokenizer), known, what="attention"), None
    parsed = list(sentences(_lines(options.conllu)))
    documents = document_rows(parsed, tokenizer)
    rows, numbers = documents.rows[: options.examples], documents.sentence_ids[: options.examples]
    patterns = attention_patterns(model, rows, known, sentence_ids=numbers, what="attention")
    return patterns, relation_scores(model, parsed, tokenizer, what="relations")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as text: {error}.") from error


def strongest_table(patterns: HeadPatterns, n: int) -> str:
    """For each pattern the heads that follow it most."""
    from t3vis.analysis.attention_patterns import MEANINGS, PATTERNS, strongest

    rows = [
        {
            "pattern": name.replace("_", " "),
            "head": f"L{head.layer}H{head.head}",
            "mass": f"{head.mass:.3f}",
            "±": f"{head.error:.3f}",
            "chance": f"{head.chance:.3f}",
            "lift": f"{head.lift:.1f}",
            "top": f"{head.top:.2f}",
            "holds": f"{head.holds:.2f}",
            "attends to": MEANINGS[name],
        }
        for name in PATTERNS
        for head in strongest(patterns, name, n=n)
    ]
    return table(rows, terminal_width())


def clusters_line(patterns: HeadPatterns) -> str:
    """How many heads follow what, and how many kinds of heads there are."""
    import numpy as np

    from t3vis.analysis.attention_patterns import cluster_heads, head_names

    counts = Counter(name for names in head_names(patterns).values() for name in names)
    listed = [f"{count} {name.replace('_', ' ')}" for name, count in counts.most_common()]
    line = f"\nheads: {', '.join(listed)} (one that follows several patterns counts for each)"
    if int(np.isfinite(patterns.entropy).sum()) < 3:
        return line
    clusters = cluster_heads(patterns)
    sizes = [int((clusters.labels == number).sum()) for number in range(clusters.n_clusters)]
    return f"{line}\n{clusters.n_clusters} clusters of {sizes} heads, silhouette {clusters.silhouette:.2f}"


def relations_table(scores: RelationScores) -> str:
    """For each frequent relation the head that finds it most often, beside the best fixed offset."""
    from t3vis.analysis.syntax import best_heads

    rows = [
        {
            "relation": best.relation,
            "head": f"L{best.layer}H{best.head}",
            "direction": best.direction.replace("_", " "),
            "accuracy": f"{best.accuracy:.3f}",
            "fixed offset": f"{best.baseline:.3f} ({best.offset:+d})",
            "arcs": f"{best.n_arcs:,}",
        }
        for best in best_heads(scores, min_arcs=N_ARCS)
    ]
    return table(rows, terminal_width())


def _one_example(options: argparse.Namespace) -> None:
    from t3vis.plots import write_figure
    from t3vis.plots_attention import plot_attention

    if options.run is None:
        raise ConfigurationError("--example needs a RUN, of which it is the number of an example.")
    run, split = opened_split(options)
    layer, head = options.head
    weights, tokens = _weights(split, options.example, options)
    title = f"example {options.example}, layer {layer}, head {head}"
    output = options.output or beside(run, f"{stem(run)}-{split.name}-{options.example}-L{layer}H{head}.png")
    write_figure(plot_attention(weights, tokens, title=title), output)
    print(f"attention of {title} written to {output}")


def _weights(split: Any, number: int, options: argparse.Namespace) -> tuple[NDArray[np.float32], list[str]]:
    """Of the head asked for in one example, and the tokens."""
    import numpy as np

    from t3vis.analyze_attention import example_rows, load_tokenizer
    from t3vis.checkpointed import pass_with_checkpoint
    from t3vis.probing.attention import attention_weights
    from t3vis.probing.batches import batches
    from t3vis.probing.model import load_model

    if not 0 <= number < split.n_examples:
        raise ConfigurationError(f"there is no example {number}; {split.name} has {split.n_examples}, counted from 0.")
    folder = options.model or pass_with_checkpoint(split, options.epoch)[1].path
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    rows = example_rows(split, np.array([number]), tokenizer)
    batch = next(batches(model, rows))
    layer, head = options.head
    (found,) = attention_weights(model, batch.inputs, layers=[layer], heads=[head])
    if found.attention not in ("self", "encoder"):
        raise ProbingError(f"layer {layer} is {found.attention}-attention; only layers that read the text are drawn.")
    return found.weights[0][0], tokenizer.convert_ids_to_tokens(rows[0]["input_ids"])
