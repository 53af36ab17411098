"""What the recorded numbers say: pure functions of arrays, one idea per module.

Nothing here imports torch, transformers, zarr or ``t3vis.store``; logits come in as a NumPy array or as
anything that is sliced like one. Import from the module that holds the idea, as in ``from
t3vis.analysis.data_map import data_map``.
"""
