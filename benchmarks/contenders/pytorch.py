"""Measures the same architecture in PyTorch, written as a user who wants speed would write it.

The code follows the paper and the authors' code, and matches each part of `RealNVPImage`, with an
equal number of parameters. The code uses channels-last memory and fused Adam, normalizes weights
once for all images of a batch, and records gradients only in training.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.contenders.contender import Contender
from benchmarks.sizes import Size

__all__ = ["PyTorch", "RealNVP"]


class PyTorch(Contender):
    """`RealNVP` below, eager or compiled, in float32 or with bfloat16 autocast."""

    def __init__(self, size: Size, *, autocast: bool = False, compile: bool = False) -> None:
        """Builds the model; `compile` applies `torch.compile` to each network."""
        super().__init__(size)
        torch.manual_seed(0)
        self.flow = RealNVP(size).to(memory_format=torch.channels_last)
        if compile:
            for module in self.flow.modules():
                if isinstance(module, _ConvResNet):
                    module.compile()
        self._parameters = list(self.flow.parameters())
        self.num_parameters = sum(p.numel() for p in self._parameters)
        self._optimizer = torch.optim.Adam(self._parameters, lr=1e-3, fused=True)
        self.scales = [p for name, p in self.flow.named_parameters() if name.endswith("scale")]
        self._autocast = torch.autocast("cpu", torch.bfloat16, enabled=autocast)

    def train_step(self, images: np.ndarray) -> float:
        """Makes one training step with noise, gradient, clipping and Adam."""
        self.flow.train()
        values = _to_torch(images)
        values += torch.rand_like(values)
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast:
            nll = -self.flow.log_prob(values).mean()
        loss = nll + 5e-5 * torch.stack(torch._foreach_norm(self.scales)).square().sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 100.0)
        self._optimizer.step()
        return nll.item()

    def log_prob(self, values: np.ndarray) -> np.ndarray:
        """Returns log p of pixel values."""
        self.flow.eval()
        with torch.no_grad(), self._autocast:
            return self.flow.log_prob(_to_torch(values)).numpy()

    def sample(self) -> np.ndarray:
        """Decodes standard normal latents to images."""
        self.flow.eval()
        with torch.no_grad(), self._autocast:
            images = self.flow(torch.randn_like(_to_torch(self.images)))
        return images.permute(0, 2, 3, 1).numpy()


def _to_torch(images: np.ndarray) -> torch.Tensor:
    # Images [B, H, W, C] are already a channels-last tensor in memory.
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


class RealNVP(nn.Module):
    """The multi-scale flow between latents and pixel values, [B, C, H, W]."""

    def __init__(self, size: Size, alpha: float = 0.05) -> None:
        super().__init__()
        margin = 256 * alpha / (1 - 2 * alpha)
        self.low, self.high = -margin, 256 + margin
        self.flow = _Scale(size.image_shape[-1], size.num_scales, size.num_blocks, size.num_filters)

    def log_prob(self, values: torch.Tensor) -> torch.Tensor:
        """Returns log p in nats, [B], of pixel values."""
        latents, log_det = self.inverse(values)
        squares = latents.square().sum((1, 2, 3))
        return log_det - 0.5 * (squares + latents[0].numel() * math.log(2 * math.pi))

    def inverse(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the latents, and the log det of the map from pixel values to latents."""
        above, below = torch.log(values - self.low), torch.log(self.high - values)
        log_det = (math.log(self.high - self.low) - above - below).sum((1, 2, 3))
        latents, flow_log_det = self.flow.inverse(above - below)
        return latents, log_det + flow_log_det

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns pixel values."""
        return (self.high - self.low) * torch.sigmoid(self.flow(latents)) + self.low


class _Scale(nn.Module):
    """A scale that contains all coarser scales."""

    def __init__(self, channels: int, num_scales: int, num_blocks: int, num_filters: int) -> None:
        super().__init__()
        self.is_last = num_scales == 1
        self.checkerboard = nn.ModuleList(
            _Step(channels, num_blocks, num_filters, i % 2, is_checkerboard=True)
            for i in range(4 if self.is_last else 3)
        )
        if not self.is_last:
            self.channelwise = nn.ModuleList(
                _Step(4 * channels, num_blocks, 2 * num_filters, i % 2, is_checkerboard=False)
                for i in range(3)
            )
            self.following = _Scale(2 * channels, num_scales - 1, num_blocks, 2 * num_filters)

    def inverse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_dets = []
        for step in self.checkerboard:
            x, log_det = step.inverse(x)
            log_dets.append(log_det)
        if not self.is_last:
            x = _squeeze(x)
            for step in self.channelwise:
                x, log_det = step.inverse(x)
                log_dets.append(log_det)
            # One diagonal of each 2×2 square goes to the next scale; the other is factored out.
            a, b, c, d = x.chunk(4, dim=1)
            x, log_det = self.following.inverse(torch.cat([a, d], dim=1))
            log_dets.append(log_det)
            a, d = x.chunk(2, dim=1)
            x = _unsqueeze(torch.cat([a, b, c, d], dim=1))
        return x, sum(log_dets)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.is_last:
            a, b, c, d = _squeeze(x).chunk(4, dim=1)
            a, d = self.following(torch.cat([a, d], dim=1)).chunk(2, dim=1)
            x = torch.cat([a, b, c, d], dim=1)
            for step in reversed(self.channelwise):
                x = step(x)
            x = _unsqueeze(x)
        for step in reversed(self.checkerboard):
            x = step(x)
        return x


class _Step(nn.Module):
    """A coupling with normalized output."""

    def __init__(
        self, channels: int, num_blocks: int, num_filters: int, parity: int, is_checkerboard: bool
    ) -> None:
        super().__init__()
        self.parity, self.is_checkerboard = parity, is_checkerboard
        changed = channels if is_checkerboard else channels // 2
        self.network = _ConvResNet(changed, num_blocks, num_filters, is_checkerboard)
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
        if self.is_checkerboard:
            rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])
            board = ((rows + columns + self.parity) % 2).to(x.dtype)[None, None]
            kept, changed = x * board, x
            output = (1 - board) * self.network(kept, board).to(x.dtype)
        else:
            kept, changed = x.chunk(2, dim=1)[:: -1 if self.parity else 1]
            output = self.network(kept).to(x.dtype)
        shift, log_scale = output.chunk(2, dim=1)
        return kept, changed, shift, self.scale * torch.tanh(log_scale)

    def _merge(self, kept: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        if self.is_checkerboard:
            return changed
        return torch.cat([changed, kept] if self.parity else [kept, changed], dim=1)


class _ConvResNet(nn.Module):
    """The conditioner: a weight-normalized ResNet with skip connections to its output."""

    def __init__(self, channels: int, num_blocks: int, num_filters: int, has_board: bool) -> None:
        super().__init__()
        self.input_norm = _BatchNorm(channels)
        self.input_conv = _WeightNormConv(2 * channels + has_board, num_filters, 3)
        self.input_skip = _WeightNormConv(num_filters, num_filters, 1)
        self.blocks = nn.ModuleList(_Block(num_filters) for _ in range(num_blocks))
        self.output_norm = _BatchNorm(num_filters)
        self.output_conv = _WeightNormConv(num_filters, 2 * channels, 1)
        # Couplings start near the identity.
        nn.init.constant_(self.output_conv.scale, 0.1)

    def forward(self, x: torch.Tensor, board: torch.Tensor | None = None) -> torch.Tensor:
        """Returns shift and log scale, [B, 2C, H, W], for the unchanged half x and the board."""
        x = self.input_norm(x)
        parts = [x, -x]
        if board is not None:
            # The checkerboard sets half of the input to 0. Doubles the other half.
            parts = [2 * x, -2 * x, board.expand(len(x), -1, -1, -1)]
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
    """Batch normalization without a scale, as in the authors' code."""

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
    """Normalizes a coupling's output by the running moments (Appendix E)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("kept", torch.zeros([]))

    def inverse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, variance = self.mean, self.variance
        if self.training:
            batch_variance, batch_mean = torch.var_mean(x, (0, 2, 3), correction=0)
            # The gradient needs the old value, which `fill_` overwrites below.
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


def _squeeze(x: torch.Tensor) -> torch.Tensor:
    """Space to depth; orders the channels by sub-pixel, row by row, and then by color."""
    x = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def _unsqueeze(x: torch.Tensor) -> torch.Tensor:
    x = F.pixel_shuffle(x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)
    return x.contiguous(memory_format=torch.channels_last)
