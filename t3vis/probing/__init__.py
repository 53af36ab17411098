"""What needs a live model: importance and pruning of attention heads, attention, saliency.

Imports torch and transformers; knows nothing of the store and of the recorder. A probed model is left as it was.
"""
