"""A dataset from what every machine has, and a small Transformer fine-tuned on it; imports nothing heavy."""
