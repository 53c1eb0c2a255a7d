from __future__ import annotations

from torch import Tensor, nn

from cgspn.blocks.layers import DropPath, LayerScale, Mlp
from cgspn.registry import BLOCKS, OPERATORS, OperatorConfig

ATTENTION = {"type": "attention"}


@BLOCKS.register_module(name="vit_block")
class ViTBlock(nn.Module):
    """The pre-norm ViT block around any operator.

    ``x = x + ls1(operator(norm1(x)))``, then ``x = x + ls2(mlp(norm2(x)))``.

    Args:
        dim: Channels C.
        num_heads: Heads, for operators that have some.
        operator: What mixes the tokens.
        mlp_dim: Hidden channels of the MLP; None means ``4 * dim``.
        activation: A key of ``cgspn.blocks.layers.ACTIVATIONS``.
        norm_eps: Epsilon of both LayerNorms.
        qkv_bias: Whether attention's queries, keys and values have a bias.
        layer_scale: Start value of LayerScale on both branches; None leaves it out.
        swiglu: Whether the MLP is a SwiGLU.
        drop_path: Probability of dropping either branch for a sample in training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        operator: OperatorConfig = ATTENTION,
        mlp_dim: int | None = None,
        activation: str = "gelu_tanh",
        norm_eps: float = 1e-6,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        swiglu: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.operator = OPERATORS.build(operator, dim=dim, num_heads=num_heads, qkv_bias=qkv_bias)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, mlp_dim or 4 * dim, activation, swiglu)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def mix(self, x: Tensor) -> Tensor:
        """The operator's residual branch after LayerScale, (B, H, W, C): the PP tap."""
        return self.ls1(self.operator(self.norm1(x)))

    def add_mix(self, x: Tensor) -> Tensor:
        """``x`` plus the operator's branch, in fused passes where the operator offers them."""
        fuses = getattr(self.operator, "fuses_residual", None)
        if fuses is not None and not (self.training and self.drop_path.rate):
            scale = self.ls1.gamma if isinstance(self.ls1, LayerScale) else None
            if fuses(x, self.norm1, scale):
                return self.operator(x, self.norm1, scale)
        return x + self.drop_path(self.mix(x))

    def add_mlp(self, x: Tensor) -> Tensor:
        """``x`` plus the MLP's branch."""
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))

    def forward_with_taps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the block's output (the PB tap) and its operator's branch, both (B, H, W, C)."""
        branch = self.mix(x)
        return self.add_mlp(x + self.drop_path(branch)), branch

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        return self.add_mlp(self.add_mix(x))
