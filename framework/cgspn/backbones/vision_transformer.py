from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cgspn.backbones.patch_embed import PatchEmbed
from cgspn.backbones.positions import LearnedPositions, Resampling
from cgspn.backbones.prefix import PrefixTokens, check_prefix, needs_positions
from cgspn.backbones.pretrained import PretrainedMixin
from cgspn.blocks.vit_block import ATTENTION, ViTBlock
from cgspn.errors import check_at_least
from cgspn.operators.linear import linear
from cgspn.registry import BACKBONES, BLOCKS, HEADS, BlockConfig, HeadConfig, OperatorConfig

VIT_BLOCK = {"type": "vit_block"}
MAP_HEAD = {"type": "map"}
POSITIONS = ("auto", "learned", "none")
OUTPUT_FORMATS = ("NCHW", "NHWC")


class EncoderOutput(NamedTuple):
    """Pooled ``summary`` (B, C) and dense ``features`` (B, H, W, C) after the last norm."""

    summary: Tensor
    features: Tensor


class EncoderTrace(NamedTuple):
    """What training stages look at: tensors (B, H, W, C) by block index, and the encoder's output.

    ``inputs`` are what the blocks read, ``branches`` the operators' residual branches (PP taps) and
    ``outputs`` the blocks' outputs (PB taps), all without prefix tokens.
    """

    inputs: dict[int, Tensor]
    branches: dict[int, Tensor]
    outputs: dict[int, Tensor]
    features: Tensor
    summary: Tensor


@BACKBONES.register_module(name="vision_encoder")
class VisionEncoder(PretrainedMixin, nn.Module):
    """A plain, single-scale vision encoder: patch embedding, blocks, norm and a pooling head.

    With ``attention`` as operator it is a ViT; with a propagation operator it has no position embedding.
    Any image size works; sizes that are no multiple of the patch are zero-padded at the bottom and right.

    Args:
        img_size: Training size in pixels, one number or (height, width); learned positions are stored
            for its grid.
        patch_size: Side of a patch in pixels.
        in_chans: Channels of the image.
        embed_dim: Channels C of a token.
        depth: Number of blocks.
        num_heads: Heads of attention and of the pooling head.
        mlp_dim: Hidden channels of the MLPs; None means ``4 * embed_dim``.
        operator: What mixes the tokens in every block.
        attention_at: Indices of blocks that use ``attention`` instead of ``operator`` (a hybrid).
        attention: The operator of the blocks in ``attention_at``.
        block: What is built around each operator.
        activation: A key of ``cgspn.blocks.layers.ACTIVATIONS``.
        norm_eps: Epsilon of all LayerNorms.
        pre_norm: Whether a LayerNorm follows the embedding, as in CLIP.
        qkv_bias: Whether attention's queries, keys and values have a bias.
        layer_scale: Start value of LayerScale; None leaves it out.
        swiglu: Whether the MLPs are SwiGLU.
        pos_embed: ``learned``, ``none``, or ``auto``: learned if ``operator`` cannot tell positions apart.
        pos_resampling: How learned positions are resampled to the grid of another image size.
        prefix_tokens: Class token and registers before the grid; they need ``attention`` in every block.
        head: How features become the summary; ``token`` takes the first prefix token instead.
        summary_dim: Channels that a linear layer gives the summary; None leaves it out.
        num_classes: Outputs of a linear classifier on the summary; 0 means none.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        mean: Mean of each image channel that the input is normalised by, for values in [0, 1].
        std: Standard deviation of each image channel, likewise.

    Raises:
        ValueError: If an argument does not fit; the message names the value and the valid choices.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int | None = None,
        operator: OperatorConfig = ATTENTION,
        attention_at: Sequence[int] = (),
        attention: OperatorConfig = ATTENTION,
        block: BlockConfig = VIT_BLOCK,
        activation: str = "gelu_tanh",
        norm_eps: float = 1e-6,
        pre_norm: bool = False,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        swiglu: bool = False,
        pos_embed: Literal["auto", "learned", "none"] = "auto",
        pos_resampling: Resampling = "bicubic_antialias",
        prefix_tokens: int = 0,
        head: HeadConfig = MAP_HEAD,
        summary_dim: int | None = None,
        num_classes: int = 0,
        drop_path_rate: float = 0.0,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        arguments = locals()
        super().__init__()
        self.config: dict[str, Any] = {
            name: arguments[name] for name in inspect.signature(type(self)).parameters
        }
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        check_positive(img_size=height, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim)
        check_positive(img_size=width, depth=depth, mlp_dim=1 if mlp_dim is None else mlp_dim)
        if layer_scale is not None and not math.isfinite(layer_scale):
            raise ValueError(f"layer_scale={layer_scale} must be a number, or null for none.")
        if not (math.isfinite(norm_eps) and norm_eps > 0):
            raise ValueError(f"norm_eps={norm_eps} must be a positive number.")
        if pos_embed not in POSITIONS:
            raise ValueError(f"pos_embed={pos_embed!r} is unknown; valid: {', '.join(POSITIONS)}.")
        if outside := [i for i in attention_at if not 0 <= i < depth]:
            raise ValueError(f"attention_at names block {outside[0]}; valid: 0 to {depth - 1}.")
        check_positive(summary_dim=1 if summary_dim is None else summary_dim)
        check_prefix(prefix_tokens, [attention if i in attention_at else operator for i in range(depth)])
        if len(mean) != in_chans or len(std) != in_chans:
            raise ValueError(
                f"mean={tuple(mean)} and std={tuple(std)} must have in_chans={in_chans} values each."
            )
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise ValueError(f"mean={tuple(mean)} must be numbers and std={tuple(std)} positive ones.")
        self.img_size = (height, width)
        self.patch_size = patch_size
        self.embed_dim = self.num_features = embed_dim
        self.summary_dim = summary_dim or embed_dim
        self.depth = depth
        self.num_classes = num_classes
        self.mean, self.std = tuple(mean), tuple(std)
        self.grad_checkpointing = False
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": patch_size} for i in range(depth)
        ]

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        grid = (-(-height // patch_size), -(-width // patch_size))
        if pos_embed == "auto":
            pos_embed = "learned" if needs_positions(operator) else "none"
        learned = pos_embed == "learned"
        self.pos_embed = LearnedPositions(grid, embed_dim, pos_resampling) if learned else None
        self.prefix = PrefixTokens(prefix_tokens, embed_dim) if prefix_tokens else None
        self.norm_pre = nn.LayerNorm(embed_dim, eps=norm_eps) if pre_norm else nn.Identity()
        shared = dict(
            dim=embed_dim, num_heads=num_heads, mlp_dim=mlp_dim, activation=activation, norm_eps=norm_eps
        )
        self.blocks = nn.ModuleList(
            BLOCKS.build(
                block,
                **shared,
                operator=attention if i in attention_at else operator,
                qkv_bias=qkv_bias,
                layer_scale=layer_scale,
                swiglu=swiglu,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.head = HEADS.build(head, **shared)
        self.head_reads_prefix = getattr(self.head, "reads_prefix", False)
        if self.head_reads_prefix and not prefix_tokens:
            raise ValueError(f"The head {head['type']!r} needs prefix_tokens of at least 1, got 0.")
        self.head_proj = linear(embed_dim, summary_dim, bias=False) if summary_dim else nn.Identity()
        self.reset_classifier(num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """What block 0 reads: patches, plus positions if there are some, as (B, H, W, C).

        Args:
            images: Normalised images, shape (B, in_chans, height, width).

        Raises:
            ValueError: If the shape is another one.
        """
        x = self.patch_embed(images)
        if self.pos_embed is not None:
            x = self.pos_embed(x)
        return self.norm_pre(x)

    def forward_features(self, images: Tensor) -> Tensor:
        """Dense features after the last norm, (B, H, W, C)."""
        return self._forward_tokens(images)[1]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The summary (B, summary_dim), or the logits (B, num_classes) if there is a classifier.

        Raises:
            ValueError: If the head reads prefix tokens, which features do not hold.
        """
        if self.head_reads_prefix:
            raise ValueError("This encoder's head reads a prefix token, not features: call encode instead.")
        summary = self._summarise(None, features)
        return summary if pre_logits else self.classifier(summary)

    def forward(self, images: Tensor) -> Tensor:
        """The logits, or the summary if there is no classifier."""
        return self.classifier(self.encode(images).summary)

    def encode(self, images: Tensor) -> EncoderOutput:
        """Summary and dense features in one pass."""
        prefix, features = self._forward_tokens(images)
        return EncoderOutput(self._summarise(prefix, features), features)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features after chosen blocks, with timm's arguments.

        Args:
            x: Images, shape (B, in_chans, height, width).
            indices: Blocks to return, negative ones counted from the end; a number n means the last n,
                None all.
            norm: Whether the last norm is applied to each.
            stop_early: Whether blocks after the last wanted one are left out.
            output_fmt: ``NCHW`` or ``NHWC``.
            intermediates_only: Whether the final features are left out of the answer.

        Returns:
            The list, in order of depth, or the final features (B, H, W, C) and the list.
        """
        if output_fmt not in OUTPUT_FORMATS:
            raise ValueError(f"output_fmt={output_fmt!r} is unknown; valid: {', '.join(OUTPUT_FORMATS)}.")
        wanted = self._block_indices(indices)
        blocks = self.blocks[: max(wanted, default=-1) + 1] if stop_early else self.blocks
        intermediates = []
        grid = self.embed(x)
        x = self._join(grid)
        for i, block in enumerate(blocks):
            x = self.run(block, x)
            if i in wanted:
                y = self._split(self.norm(x) if norm else x, grid)[1]
                intermediates.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        return intermediates if intermediates_only else (self._split(self.norm(x), grid)[1], intermediates)

    def forward_with_taps(self, images: Tensor, blocks: Sequence[int] | None = None) -> EncoderTrace:
        """Runs the encoder and keeps what goes in and out of the given blocks (None: all of them)."""
        wanted = self._block_indices(blocks)
        inputs, branches, outputs = {}, {}, {}
        grid = self.embed(images)
        x = self._join(grid)
        for i, block in enumerate(self.blocks):
            if i in wanted:
                inputs[i] = self._split(x, grid)[1]
                x, branch = self.run(cast(ViTBlock, block).forward_with_taps, x)
                branches[i] = self._split(branch, grid)[1]
                outputs[i] = self._split(x, grid)[1]
            else:
                x = self.run(block, x)
        prefix, features = self._split(self.norm(x), grid)
        return EncoderTrace(inputs, branches, outputs, features, self._summarise(prefix, features))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters with more than one dimension that weight decay should leave alone."""
        spared = ("pos_embed.weight", "prefix.weight", "head.probe")
        return {name for name, _ in self.named_parameters() if name in spared}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups in the form timm uses for layer-wise learning rates."""
        stem = r"^patch_embed|^pos_embed|^prefix|^norm_pre"
        blocks = r"^blocks\.(\d+)" if coarse else [(r"^blocks\.(\d+)", None), (r"^norm\.|^head", (99999,))]
        return {"stem": stem, "blocks": blocks}

    def get_classifier(self) -> nn.Module:
        """The linear classifier on the summary, or an Identity."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the classifier by a new one; 0 removes it."""
        check_at_least(0, num_classes=num_classes)
        self.num_classes = self.config["num_classes"] = num_classes
        self.classifier = linear(self.summary_dim, num_classes) if num_classes else nn.Identity()

    def _join(self, grid: Tensor) -> Tensor:
        """What the first block reads: the grid (B, H, W, C), with prefix tokens one row."""
        return grid if self.prefix is None else self.prefix.join(grid, self.norm_pre)

    def _split(self, x: Tensor, grid: Tensor) -> tuple[Tensor | None, Tensor]:
        """Prefix tokens (B, P, C), if there are some, and tokens of the shape of ``grid``."""
        return (None, x) if self.prefix is None else self.prefix.split(x, *grid.shape[1:3])

    def _forward_tokens(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Prefix tokens and features after the last norm."""
        grid = self.embed(images)
        x = self._join(grid)
        for block in self.blocks:
            x = self.run(block, x)
        return self._split(self.norm(x), grid)

    def _summarise(self, prefix: Tensor | None, features: Tensor) -> Tensor:
        return self.head_proj(self.head(prefix if self.head_reads_prefix else features))

    def run(self, function: Callable[[Tensor], Any], x: Tensor) -> Any:
        """``function(x)`` of a block, its activations kept or, with checkpointing, computed again."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, x, use_reentrant=False)
        return function(x)

    def _block_indices(self, indices: int | Sequence[int] | None) -> set[int]:
        if indices is None:
            return set(range(self.depth))
        if isinstance(indices, int) and indices < 1:
            raise ValueError(
                f"indices={indices} must be a number of last blocks, at least 1, or a list of blocks."
            )
        chosen = range(self.depth - indices, self.depth) if isinstance(indices, int) else indices
        valid = range(0 if isinstance(indices, int) else -self.depth, self.depth)
        if outside := [i for i in chosen if i not in valid]:
            raise ValueError(f"There is no block {outside[0]} among {self.depth}; asked for {indices}.")
        return {i % self.depth for i in chosen}


def check_positive(**sizes: int) -> None:
    """Raises ValueError for the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1.")
