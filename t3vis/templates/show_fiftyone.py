"""Show exported examples in FiftyOne: ``python show.py``; needs ``pip install fiftyone``."""

import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


def load() -> object:
    """The dataset, with the map as the brain key ``map`` and the neighbours in hidden space as ``hidden_states``."""
    import fiftyone as fo
    import fiftyone.brain as fob

    name = json.loads((FOLDER / "metadata.json").read_text(encoding="utf-8"))["name"]
    dataset = fo.Dataset.from_dir(
        str(FOLDER), dataset_type=fo.types.LegacyFiftyOneDataset, name=name, overwrite=True, persistent=True
    )
    if (FOLDER / "points.npy").exists():
        fob.compute_visualization(dataset, points=np.load(FOLDER / "points.npy"), brain_key="map")
    if (FOLDER / "features.npy").exists():
        features = np.nan_to_num(np.load(FOLDER / "features.npy"))
        fob.compute_similarity(dataset, embeddings=features, brain_key="hidden_states")
    return dataset


def main() -> None:
    """Load it, and wait while the app is open."""
    import fiftyone as fo

    fo.launch_app(load()).wait()


if __name__ == "__main__":
    main()
