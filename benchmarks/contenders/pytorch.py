"""The same architecture in PyTorch, as fast as its user would make it.

Written from the paper and from the authors' code, part for part as `RealNVPImage` is: the number of
parameters is equal. Channels-last memory, fused Adam, normalised weights shared by all images of a
batch, no gradient bookkeeping outside of training, and bfloat16 autocast in the networks only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.contenders.contender import Contender
from benchmarks.sizes import Size

__all__ = ["PyTorch", "RealNVP"]


class PyTorch(Contender):
    """`RealNVP` below, eager or compiled, in float32 or with bfloat16 autocast."""

    def __init__(
        self,
        size: Size,
        images: np.ndarray | None = None,
        *,
        autocast: bool = False,
        compile: str | None = None,
        channels_last: bool = True,
    ) -> None:
        """Builds the model.

        Args:
          size: the architecture and the batch size.
          images: to measure on.
          autocast: whether the networks compute in bfloat16.
          compile: what `torch.compile` compiles: `'networks'`, each by itself; `'model'`, each
            direction in one graph; `None`, nothing.
          channels_last: whether activations and kernels are laid out channels last.

        Raises:
          ValueError: if `compile` is another one.
        """
        super().__init__(size, images)
        if compile not in (None, "networks", "model"):
            raise ValueError(f"expected compile of 'networks', 'model' or None, got {compile!r}.")
        torch.manual_seed(0)
        self.flow = RealNVP(size, autocast=autocast)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.flow.to(memory_format=self._layout)
        if compile == "networks":
            for module in self.flow.modules():
                if isinstance(module, ConvResNet):
                    module.compile()
        wrap: Callable = torch.compile if compile == "model" else lambda function: function
        self._log_prob_of = wrap(self.flow.log_prob)
        self._forward = wrap(self.flow.forward)
        self._parameters = list(self.flow.parameters())
        self._optimizer = torch.optim.Adam(self._parameters, lr=1e-3, fused=True)
        self._scales = [p for name, p in self.flow.named_parameters() if name.endswith("scale")]
        self._values = self._tensor(self.images) + 0.5

    def _tensor(self, images: np.ndarray) -> torch.Tensor:
        # Images [B, H, W, C] in memory are a channels-last tensor already.
        values = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
        return values.contiguous(memory_format=self._layout)

    def train_on(self, images: np.ndarray) -> float:
        """Makes one step: noise, gradient, clipping, Adam."""
        self.flow.train()
        values = self._tensor(images)
        values += torch.rand_like(values)
        self._optimizer.zero_grad(set_to_none=True)
        nll = -self._log_prob_of(values).mean()
        squares = torch._foreach_norm(self._scales)
        loss = nll + 5e-5 * torch.stack(squares).square().sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 100.0)
        self._optimizer.step()
        return nll.item()

    def log_prob(self) -> np.ndarray:
        """Returns log p of the batch."""
        return self._evaluate(self._log_prob_of, self._values).numpy()

    def sample(self) -> np.ndarray:
        """Returns the images of standard normal latents."""
        samples = self._evaluate(self._forward, torch.randn_like(self._values))
        return samples.permute(0, 2, 3, 1).numpy()

    def score(self, images: np.ndarray) -> np.ndarray:
        """Returns log p of noisy images."""
        values = self._tensor(images)
        values += torch.rand(values.shape, generator=torch.Generator().manual_seed(0))
        return self._evaluate(self._log_prob_of, values).numpy()

    def _evaluate(
        self, function: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor
    ) -> torch.Tensor:
        self.flow.eval()
        with torch.no_grad():
            return function(values)

    @property
    def num_parameters(self) -> int:
        """The number of trainable numbers."""
        return sum(p.numel() for p in self._parameters)


class RealNVP(nn.Module):
    """The multi-scale flow between latents and pixel values, [B, C, H, W]."""

    def __init__(self, size: Size, autocast: bool = False, alpha: float = 0.05) -> None:
        super().__init__()
        margin = 256 * alpha / (1 - 2 * alpha)
        self.low, self.high = -margin, 256 + margin
        channels = size.image_shape[-1]
        self.flow = _Scale(
            channels, size.num_scales, size.num_blocks, size.num_filters, autocast=autocast
        )

    def log_prob(self, values: torch.Tensor) -> torch.Tensor:
        """Returns log p in nats, [B], over pixel values."""
        latents, log_det = self.inverse(values)
        dims = latents[0].numel()
        squares = latents.square().sum((1, 2, 3))
        return log_det - 0.5 * (squares + dims * math.log(2 * math.pi))

    def inverse(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the latents, and the log det of this direction."""
        above, below = torch.log(values - self.low), torch.log(self.high - values)
        log_det = (math.log(self.high - self.low) - above - below).sum((1, 2, 3))
        latents, flow_log_det = self.flow.inverse(above - below)
        return latents, log_det + flow_log_det

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns pixel values."""
        logits = self.flow(latents)
        return (self.high - self.low) * torch.sigmoid(logits) + self.low


class _Scale(nn.Module):
    """A scale with all those below it."""

    def __init__(
        self, channels: int, num_scales: int, num_blocks: int, num_filters: int, autocast: bool
    ) -> None:
        super().__init__()
        self.is_last = num_scales == 1
        self.checkerboard = nn.ModuleList(
            _Step(channels, num_blocks, num_filters, i % 2, True, autocast)
            for i in range(4 if self.is_last else 3)
        )
        if not self.is_last:
            self.channelwise = nn.ModuleList(
                _Step(4 * channels, num_blocks, 2 * num_filters, i % 2, False, autocast)
                for i in range(3)
            )
            self.following = _Scale(
                2 * channels, num_scales - 1, num_blocks, 2 * num_filters, autocast
            )

    def inverse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_det = x.new_zeros(len(x))
        for step in self.checkerboard:
            x, step_log_det = step.inverse(x)
            log_det = log_det + step_log_det
        if self.is_last:
            return x, log_det
        x = _squeeze(x)
        for step in self.channelwise:
            x, step_log_det = step.inverse(x)
            log_det = log_det + step_log_det
        x = _diagonal_first(x)
        going_on, factored_out = x.chunk(2, dim=1)
        going_on, following_log_det = self.following.inverse(going_on)
        x = _diagonal_first_undone(torch.cat([going_on, factored_out], dim=1))
        return _unsqueeze(x), log_det + following_log_det

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.is_last:
            x = _diagonal_first(_squeeze(x))
            going_on, factored_out = x.chunk(2, dim=1)
            x = _diagonal_first_undone(torch.cat([self.following(going_on), factored_out], dim=1))
            for step in reversed(self.channelwise):
                x = step(x)
            x = _unsqueeze(x)
        for step in reversed(self.checkerboard):
            x = step(x)
        return x


class _Step(nn.Module):
    """A coupling, and the normalisation of its output."""

    def __init__(
        self,
        channels: int,
        num_blocks: int,
        num_filters: int,
        parity: int,
        is_checkerboard: bool,
        autocast: bool,
    ) -> None:
        super().__init__()
        self.parity = parity
        self.is_checkerboard = is_checkerboard
        self.autocast = autocast
        changed = channels if is_checkerboard else channels // 2
        self.network = ConvResNet(
            changed, 2 * changed, num_blocks, num_filters, board=is_checkerboard
        )
        self.scale = nn.Parameter(torch.ones([]))
        self.norm = _RunningNorm(channels)

    def inverse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept, changed, shift, log_scale = self._split(x)
        changed = torch.addcmul(shift, changed, log_scale.exp())
        x, norm_log_det = self.norm.inverse(self._merge(kept, changed))
        return x, log_scale.sum((1, 2, 3)) + norm_log_det

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, changed, shift, log_scale = self._split(self.norm(x))
        return self._merge(kept, (changed - shift) * torch.exp(-log_scale))

    def _split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        board = None
        if self.is_checkerboard:
            board = _board(x, self.parity)
            kept, changed = x * board, x
        else:
            first, second = x.chunk(2, dim=1)
            kept, changed = (second, first) if self.parity else (first, second)
        context = (
            torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext()
        )
        with context:
            output = self.network(kept, board)
        output = output.to(x.dtype)
        if self.is_checkerboard:
            output = output * (1 - board)
        shift, log_scale = output.chunk(2, dim=1)
        return kept, changed, shift, self.scale * torch.tanh(log_scale)

    def _merge(self, kept: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        if self.is_checkerboard:
            return changed
        return torch.cat([changed, kept] if self.parity else [kept, changed], dim=1)


class ConvResNet(nn.Module):
    """The conditioner: a weight-normalised ResNet with skip connections to its output."""

    def __init__(
        self, inputs: int, outputs: int, num_blocks: int, num_filters: int, board: bool
    ) -> None:
        super().__init__()
        self.factor = 2.0 if board else 1.0
        self.input_norm = _BatchNorm(inputs)
        self.input_conv = _WeightNormConv(2 * inputs + board, num_filters, 3)
        self.input_skip = _WeightNormConv(num_filters, num_filters, 1)
        self.blocks = nn.ModuleList(_Block(num_filters) for _ in range(num_blocks))
        self.output_norm = _BatchNorm(num_filters)
        self.output_conv = _WeightNormConv(num_filters, outputs, 1)

    def forward(self, x: torch.Tensor, board: torch.Tensor | None) -> torch.Tensor:
        """Returns [B, outputs, H, W] for the kept half and the board, [1, 1, H, W]."""
        x = self.factor * self.input_norm(x)
        parts = [x, -x]
        if board is not None:
            parts.append(board.expand(len(x), -1, -1, -1))
        h = self.input_conv(F.relu(torch.cat(parts, dim=1)))
        skips = self.input_skip(h)
        for block in self.blocks:
            h, skip = block(h)
            skips = skips + skip
        return self.output_conv(F.relu(self.output_norm(skips)))


class _Block(nn.Module):
    def __init__(self, num_filters: int) -> None:
        super().__init__()
        self.norm1 = _BatchNorm(num_filters)
        self.conv1 = _WeightNormConv(num_filters, num_filters, 3, bias=False)
        self.norm2 = _BatchNorm(num_filters)
        self.conv2 = _WeightNormConv(num_filters, num_filters, 3)
        self.skip = _WeightNormConv(num_filters, num_filters, 1)

    def forward(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        residual = self.conv1(F.relu(self.norm1(h), inplace=True))
        h = h + self.conv2(F.relu(self.norm2(residual), inplace=True))
        return h, self.skip(h)


class _BatchNorm(nn.Module):
    """Batch normalisation without a scale, as in the authors' code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(
            x, self.mean, self.variance, None, self.bias, self.training, momentum=0.1, eps=1e-4
        )


class _WeightNormConv(nn.Module):
    """A convolution with 'same' padding whose kernel has a learned norm."""

    def __init__(self, inputs: int, outputs: int, size: int, bias: bool = True) -> None:
        super().__init__()
        self.direction = nn.Parameter(0.05 * torch.randn(outputs, inputs, size, size))
        self.scale = nn.Parameter(torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.padding = size // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        square_norm = self.direction.square().sum((1, 2, 3))
        factor = self.scale * torch.rsqrt(square_norm + 1e-30)
        weight = self.direction * factor[:, None, None, None]
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class _RunningNorm(nn.Module):
    """Normalises a coupling's output by the running moments (Appendix E)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("kept", torch.zeros([]))

    def inverse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, variance = self.mean, self.variance
        if self.training:
            batch_variance, batch_mean = torch.var_mean(x, (0, 2, 3), correction=0)
            # Clones, for the gradient needs the factor as it was.
            kept = self.kept.clone()
            mean = kept * mean.clone() + (1 - kept) * batch_mean
            variance = kept * variance.clone() + (1 - kept) * batch_variance
            self.mean.copy_(mean.detach())
            self.variance.copy_(variance.detach())
            self.kept.fill_(0.9)
        inverse_deviation = torch.rsqrt(variance + 1e-4)
        x = (x - mean[:, None, None]) * inverse_deviation[:, None, None]
        return x, x.shape[-2] * x.shape[-1] * torch.log(inverse_deviation).sum()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        deviation = torch.sqrt(self.variance + 1e-4)
        return x * deviation[:, None, None] + self.mean[:, None, None]


def _board(x: torch.Tensor, parity: int) -> torch.Tensor:
    rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])
    return ((rows + columns + parity) % 2).to(x.dtype)[None, None]


def _squeeze(x: torch.Tensor) -> torch.Tensor:
    """Space to depth, the sub-pixels row by row and the colours within each."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
    x = x.reshape(batch, 4 * channels, height // 2, width // 2)
    return x.contiguous(memory_format=torch.channels_last)


def _unsqueeze(x: torch.Tensor) -> torch.Tensor:
    batch, channels, height, width = x.shape
    x = x.reshape(batch, 2, 2, channels // 4, height, width).permute(0, 3, 4, 1, 5, 2)
    x = x.reshape(batch, channels // 4, 2 * height, 2 * width)
    return x.contiguous(memory_format=torch.channels_last)


def _diagonal_first(x: torch.Tensor) -> torch.Tensor:
    """Orders sub-pixels (0,0), (0,1), (1,0), (1,1) as (0,0), (1,1), (0,1), (1,0)."""
    a, b, c, d = x.chunk(4, dim=1)
    return torch.cat([a, d, b, c], dim=1)


def _diagonal_first_undone(x: torch.Tensor) -> torch.Tensor:
    a, d, b, c = x.chunk(4, dim=1)
    return torch.cat([a, b, c, d], dim=1)
