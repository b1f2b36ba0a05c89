"""The one door through which the operators of this package join torch."""

import torch

library = torch.library.Library("sparsewright", "DEF")
