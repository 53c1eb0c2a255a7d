"""Teachers from timm."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cgspn.registry import TEACHERS
from cgspn.teachers.base import Teacher
from cgspn.teachers.conversion import (
    Tensors,
    activation_of,
    build_encoder,
    copied,
    library,
    patch_embedding,
    positions,
    prefixed,
    readable,
    require,
    stacked,
)

POOLINGS = {"token": "token", "avg": "avg", "map": "map"}
LOCAL = "local-dir:"


@TEACHERS.register_module(name="timm")
class TimmTeacher(Teacher):
    """A vision transformer of timm, such as DINOv2, SigLIP's image tower or an ImageNet classifier's trunk.

    It has no text tower: stage 1 and the taps of stage 2 work, with ``contrastive_weight: 0``. Any image
    size works, positions being resampled as timm's ``dynamic_img_size`` does. Sizes that are no multiple of
    the patch are zero-padded. Models with rotary positions, normalised queries or pooling before the last
    norm are refused.

    Args:
        name: The model's name, such as ``vit_base_patch14_dinov2.lvd142m``, or ``local-dir:FOLDER`` or
            ``hf-hub:NAME``.
        weights: A file of weights; None takes those that belong to ``name``, from the folder or the hub.

    Raises:
        ValueError: If there is no such model or file, or the model is of another kind.
    """

    def __init__(self, name: str, weights: str | None = None) -> None:
        timm = library("timm", "timm")
        check_name(timm, name)
        overlay: dict[str, Any] | None = None
        if weights is not None:
            if not Path(weights).is_file():
                raise ValueError(f"There is no weight file {weights}; leave it out to take timm's own.")
            # Without this, names whose weights were published as .npz read every file as one.
            overlay = {"file": weights, "custom_load": Path(weights).suffix == ".npz"}
        with readable(f"timm cannot load {name}" + (f" from {weights}" if weights else "")):
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)
        super().__init__(timm_encoder(model, name))


def check_name(timm: Any, name: str) -> None:
    """Raises ValueError for a name that timm cannot know."""
    if name.startswith(LOCAL):
        folder = Path(name.removeprefix(LOCAL))
        if not (folder / "config.json").is_file():
            raise ValueError(f"There is no folder {folder} with timm's config.json.")
        return
    if ":" in name or timm.is_model(name):
        return
    nearest = difflib.get_close_matches(name, timm.list_models("*vit*"), n=5)
    raise ValueError(
        f"Unknown timm model {name!r}; valid: local-dir:FOLDER, hf-hub:NAME or one of timm.list_models()"
        + (f", such as {', '.join(nearest)}." if nearest else ".")
    )


def timm_encoder(model: Any, source: str, projection: nn.Linear | None = None) -> Any:
    """The ``VisionEncoder`` that equals a timm ``VisionTransformer`` and a linear layer on its summary."""
    vision_transformer = library("timm.models.vision_transformer", "timm")
    if type(model) is not vision_transformer.VisionTransformer:
        raise ValueError(f"{source} is a {type(model).__name__}; valid: timm's VisionTransformer.")
    block, patch = model.blocks[0], model.patch_embed
    prefix = model.num_prefix_tokens
    glu = hasattr(block.mlp, "gate_last") or hasattr(block.mlp, "fc1_g")
    require(
        source,
        square_patches=patch.patch_size[0] == patch.patch_size[1],
        no_norm_in_its_patch_embedding=isinstance(patch.norm, nn.Identity),
        plain_blocks=type(block) is vision_transformer.Block,
        plain_attention=type(block.attn) is vision_transformer.Attention and block.attn.gate is None,
        attention_without_norms=isinstance(block.attn.q_norm, nn.Identity)
        and isinstance(block.attn.norm, nn.Identity),
        an_MLP_without_norm=isinstance(block.mlp.norm, nn.Identity),
        the_gate_first_in_its_MLP=not getattr(block.mlp, "gate_last", False),
        SiLU_in_its_gated_MLP=not glu or activation_of(block.mlp.act, source) == "silu",
        layer_norms=isinstance(model.norm, nn.LayerNorm),
        pooling_by_token_avg_or_map=model.global_pool in POOLINGS,
        pooling_without_the_prefix=not model.pool_include_prefix,
    )
    rows, columns = patch.grid_size
    size = patch.patch_size[0]
    tensors: Tensors = patch_embedding(patch.proj.weight, patch.proj.bias)
    tokens = [token[0] for token in (model.cls_token, model.reg_token) if token is not None]
    if model.pos_embed is not None:
        table = model.pos_embed[0]
        own = 0 if model.no_embed_class else prefix
        tensors |= positions(table[own:], rows, columns)
        if tokens and own:
            tokens = [torch.cat(tokens) + table[:own]]
    if tokens:
        tensors["prefix.weight"] = torch.cat(tokens)[None]
    if pre_norm := isinstance(model.norm_pre, nn.LayerNorm):
        tensors |= copied("norm_pre", model.norm_pre)
    for i, layer in enumerate(model.blocks):
        tensors |= prefixed(f"blocks.{i}", timm_block(layer))
    tensors |= copied("norm", model.norm)
    head: dict[str, Any] = {"type": POOLINGS[model.global_pool]}
    if model.attn_pool is not None:
        head |= {
            "num_heads": model.attn_pool.num_heads,
            "activation": activation_of(model.attn_pool.mlp.act, source),
        }
        tensors |= map_head(model.attn_pool, source)
    if projection is not None:
        require(source, a_projection_without_bias=projection.bias is None)
        tensors |= copied("head_proj", projection)
    arguments = {
        "img_size": (rows * size, columns * size),
        "patch_size": size,
        "in_chans": patch.proj.in_channels,
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_dim": block.mlp.fc2.in_features,
        # A gated MLP does not use it.
        "activation": "gelu" if glu else activation_of(block.mlp.act, source),
        "norm_eps": model.norm.eps,
        "pre_norm": pre_norm,
        "qkv_bias": block.attn.qkv.bias is not None,
        "layer_scale": None if isinstance(block.ls1, nn.Identity) else 1.0,
        "swiglu": glu,
        "pos_embed": "none" if model.pos_embed is None else "learned",
        "prefix_tokens": prefix,
        "head": head,
        "summary_dim": None if projection is None else projection.out_features,
        "mean": tuple(model.pretrained_cfg["mean"]),
        "std": tuple(model.pretrained_cfg["std"]),
    }
    return build_encoder(arguments, tensors, source)


def timm_block(layer: Any) -> Tensors:
    """A timm block as one of ours."""
    tensors = {
        **copied("norm1", layer.norm1),
        **copied("operator.qkv", layer.attn.qkv),
        **copied("operator.proj", layer.attn.proj),
        **copied("ls1", layer.ls1),
        **copied("norm2", layer.norm2),
        **copied("mlp.fc2", layer.mlp.fc2),
        **copied("ls2", layer.ls2),
    }
    if hasattr(layer.mlp, "fc1_g"):
        return tensors | stacked("mlp.fc1", layer.mlp.fc1_g, layer.mlp.fc1_x)
    return tensors | copied("mlp.fc1", layer.mlp.fc1)


def map_head(pool: Any, source: str) -> Tensors:
    """Timm's ``AttentionPoolLatent`` as the head ``map``."""
    require(
        source,
        one_query_in_its_pooling=getattr(pool, "latent_len", 0) == 1,
        plain_attention_pooling=pool.pos_embed is None
        and isinstance(pool.q, nn.Linear)
        and isinstance(pool.q_norm, nn.Identity)
        and isinstance(pool.norm, nn.LayerNorm)
        and pool.mlp is not None,
    )
    tensors: Tensors = {"head.probe": pool.latent}
    for ours in ("q", "kv", "proj", "norm"):
        tensors |= copied(f"head.{ours}", getattr(pool, ours))
    return tensors | copied("head.mlp.fc1", pool.mlp.fc1) | copied("head.mlp.fc2", pool.mlp.fc2)
