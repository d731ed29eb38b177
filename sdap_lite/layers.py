"""The one layer that PyTorch lacks: a shortcut whose channels surgery can change."""

from __future__ import annotations

import torch  # noqa: F401 - the docstring's example
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ChannelPad"]


class ChannelPad(nn.Module):
    """Subsamples an image and pads its channels with zeros: the shortcut 'option A'.

    He et al. 2016, section 4.2. It is a module, and not a line of code, so that surgery can
    change how many zero channels stand before and after (chapter 6).

    Args:
        before: zero channels put in front.
        after: zero channels put behind.
        stride: every how many pixels are kept in each direction.

    >>> ChannelPad(2, 1, stride=2)(torch.ones(1, 3, 8, 8)).shape
    torch.Size([1, 6, 4, 4])
    """

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.before, self.after, self.stride = before, after, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"before={self.before}, after={self.after}, stride={self.stride}"
