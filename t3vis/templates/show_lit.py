"""Show exported examples in LIT: ``python show.py [--port=5432]``; needs ``pip install lit-nlp``."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent


def main() -> None:
    """Serve the examples beside this script, with a model that repeats what was recorded of them."""
    from absl import flags
    from lit_nlp import dev_server, server_flags
    from lit_nlp.api import dataset, model, types

    class Recorded(model.Model):  # type: ignore[misc]  # LIT has no types
        """Probabilities of the classes, and hidden states, by the id of the example."""

        def __init__(self) -> None:
            self._classes = json.loads((FOLDER / "classes.json").read_text(encoding="utf-8"))
            names = {"probabilities": "pred_probs.npy", "hidden_states": "features.npy"}
            self._arrays = {
                name: np.load(FOLDER / file, mmap_mode="r") for name, file in names.items() if (FOLDER / file).exists()
            }

        def input_spec(self) -> types.Spec:
            return {"example": types.Scalar()}

        def output_spec(self) -> types.Spec:
            kinds = {
                "probabilities": types.MulticlassPreds(vocab=self._classes, parent="label"),
                "hidden_states": types.Embeddings(),
            }
            return {name: kinds[name] for name in self._arrays}

        def predict(self, inputs: Iterable[dict[str, Any]], **_: object) -> Iterator[dict[str, Any]]:
            for one in inputs:
                yield {name: np.nan_to_num(array[int(one["example"])]) for name, array in self._arrays.items()}

    flags.FLAGS(sys.argv)
    examples = dataset.load_lit_format(str(FOLDER / "examples.lit.jsonl"))
    dev_server.Server({"recorded": Recorded()}, {"examples": examples}, **server_flags.get_flags()).serve()


if __name__ == "__main__":
    main()
