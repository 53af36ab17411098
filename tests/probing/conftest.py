"""Settings of the tests that probe."""

import torch

torch.set_num_threads(1)  # tiny models: more threads only get in each other's way
