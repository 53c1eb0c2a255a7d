from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cgspn.backbones.patch_embed import PatchEmbed
from cgspn.backbones.positions import LearnedPositions
from cgspn.backbones.pretrained import PretrainedMixin
from cgspn.blocks.vit_block import ATTENTION, ViTBlock
from cgspn.operators.linear import linear
from cgspn.registry import BACKBONES, BLOCKS, HEADS, OPERATORS, BlockConfig, HeadConfig, OperatorConfig

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
    ``outputs`` the blocks' outputs (PB taps).
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
        head: How features become the summary.
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
        head: HeadConfig = MAP_HEAD,
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
        if pos_embed not in POSITIONS:
            raise ValueError(f"pos_embed={pos_embed!r} is unknown; valid: {', '.join(POSITIONS)}.")
        if outside := [i for i in attention_at if not 0 <= i < depth]:
            raise ValueError(f"attention_at names block {outside[0]}; valid: 0 to {depth - 1}.")
        if len(mean) != in_chans or len(std) != in_chans:
            raise ValueError(
                f"mean={tuple(mean)} and std={tuple(std)} must have in_chans={in_chans} values each."
            )
        self.img_size = (height, width)
        self.patch_size = patch_size
        self.embed_dim = self.num_features = embed_dim
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
        self.pos_embed = LearnedPositions(grid, embed_dim) if pos_embed == "learned" else None
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
        x = self.embed(images)
        for block in self.blocks:
            x = self.run(block, x)
        return self.norm(x)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The summary (B, C), or the logits (B, num_classes) if there is a classifier."""
        summary = self.head(features)
        return summary if pre_logits else self.classifier(summary)

    def forward(self, images: Tensor) -> Tensor:
        """``forward_head`` of ``forward_features``."""
        return self.forward_head(self.forward_features(images))

    def encode(self, images: Tensor) -> EncoderOutput:
        """Summary and dense features in one pass."""
        features = self.forward_features(images)
        return EncoderOutput(self.head(features), features)

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
        x = self.embed(x)
        for i, block in enumerate(blocks):
            x = self.run(block, x)
            if i in wanted:
                y = self.norm(x) if norm else x
                intermediates.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def forward_with_taps(self, images: Tensor, blocks: Sequence[int] | None = None) -> EncoderTrace:
        """Runs the encoder and keeps what goes in and out of the given blocks (None: all of them)."""
        wanted = self._block_indices(blocks)
        inputs, branches, outputs = {}, {}, {}
        x = self.embed(images)
        for i, block in enumerate(self.blocks):
            if i in wanted:
                inputs[i] = x
                x, branches[i] = self.run(cast(ViTBlock, block).forward_with_taps, x)
                outputs[i] = x
            else:
                x = self.run(block, x)
        features = self.norm(x)
        return EncoderTrace(inputs, branches, outputs, features, self.head(features))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters with more than one dimension that weight decay should leave alone."""
        return {name for name, _ in self.named_parameters() if name in ("pos_embed.weight", "head.probe")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups in the form timm uses for layer-wise learning rates."""
        stem = r"^patch_embed|^pos_embed|^norm_pre"
        blocks = r"^blocks\.(\d+)" if coarse else [(r"^blocks\.(\d+)", None), (r"^norm\.|^head", (99999,))]
        return {"stem": stem, "blocks": blocks}

    def get_classifier(self) -> nn.Module:
        """The linear classifier on the summary, or an Identity."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the classifier by a new one; 0 removes it."""
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes} is negative.")
        self.num_classes = self.config["num_classes"] = num_classes
        self.classifier = linear(self.embed_dim, num_classes) if num_classes else nn.Identity()

    def run(self, function: Callable[[Tensor], Any], x: Tensor) -> Any:
        """``function(x)`` of a block, its activations kept or, with checkpointing, computed again."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, x, use_reentrant=False)
        return function(x)

    def _block_indices(self, indices: int | Sequence[int] | None) -> set[int]:
        if indices is None:
            return set(range(self.depth))
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


def needs_positions(operator: OperatorConfig) -> bool:
    """Whether the operator cannot tell positions apart, so that a position embedding has to."""
    entry = OPERATORS.find(OPERATORS.check(operator)["type"])
    return getattr(getattr(entry, "target", entry), "needs_positions", False)
