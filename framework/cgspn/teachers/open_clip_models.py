"""Teachers from OpenCLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cgspn.backbones.vision_transformer import VisionEncoder
from cgspn.errors import unknown_name
from cgspn.registry import TEACHERS
from cgspn.teachers.base import Teacher
from cgspn.teachers.conversion import (
    Tensors,
    activation_of,
    build_encoder,
    copied,
    fused_attention,
    library,
    patch_embedding,
    positions,
    prefixed,
    readable,
    require,
)
from cgspn.teachers.timm_models import timm_encoder

LOCAL = "local-dir:"
POOLINGS = {"tok": "token", "avg": "avg"}


@TEACHERS.register_module(name="open_clip")
class OpenClipTeacher(Teacher):
    """A two-tower model of OpenCLIP whose vision tower is its own or timm's vision transformer.

    Any image size works: positions are resampled as the library does when it loads weights for another
    size. Sizes that are no multiple of the patch are zero-padded.

    Args:
        name: The model's name, such as ``ViT-SO400M-14-SigLIP2-378``, or ``local-dir:FOLDER`` or
            ``hf-hub:NAME``.
        weights: A file of weights or a tag of pretrained ones, such as ``webli``; None with a folder or a hub
            name, which hold their own.

    Raises:
        ValueError: If there is no such model, tag or file, or the model is of another kind.
    """

    def __init__(self, name: str, weights: str | None = None) -> None:
        open_clip = library("open_clip", "openclip")
        check_source(open_clip, name, weights)
        with readable(f"OpenCLIP cannot load {name}" + (f" from {weights}" if weights else "")):
            model = open_clip.create_model(name, pretrained=weights, require_pretrained=True)
        with readable(f"OpenCLIP has no tokenizer for {name}"):
            tokenizer = open_clip.get_tokenizer(name)
        mean, std = normalisation(open_clip, model, name, weights)
        scale, bias = model.logit_scale.item(), getattr(model, "logit_bias", None)
        encoder = vision_encoder(model.visual, name, mean, std)
        super().__init__(
            encoder, OpenClipText(model, tokenizer), scale, None if bias is None else bias.item()
        )


class OpenClipText(nn.Module):
    """The text tower of an OpenCLIP model with its tokenizer.

    Args:
        model: The model, whose vision tower, scale and bias are removed.
        tokenizer: Maps texts to tokens (B, L).
    """

    def __init__(self, model: Any, tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        for part in ("visual", "logit_scale", "logit_bias"):
            # A bias that is not there is an attribute with the value None.
            if part in model._modules or part in model._parameters:
                delattr(model, part)
        self.model = model
        self.open_clip_tokenizer = tokenizer

    def tokenizer(self, texts: Sequence[str]) -> Tensor:
        """What the tower reads, int64 (B, L)."""
        return self.open_clip_tokenizer(list(texts))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Tokenises and embeds B texts, (B, C)."""
        device = next(self.model.parameters()).device
        return self.model.encode_text(self.tokenizer(texts).to(device))


def check_source(open_clip: Any, name: str, weights: str | None) -> None:
    """Raises ValueError for names, tags and files that cannot be right."""
    if ":" in name:
        if weights is not None:
            raise ValueError(f"{name} holds its own weights; leave out weights={weights!r}.")
        if name.startswith(LOCAL) and not (folder := Path(name.removeprefix(LOCAL))).is_dir():
            raise ValueError(f"There is no folder {folder}.")
        return
    if name not in open_clip.list_models():
        raise ValueError(unknown_name("OpenCLIP model", name, open_clip.list_models()))
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights is None or not (weights in tags or Path(weights).is_file()):
        given = "no weights are given" if weights is None else f"there is no file or tag {weights}"
        raise ValueError(f"{name}: {given}; valid: a file or one of the tags {', '.join(tags) or '(none)'}.")
    quick = weights in tags and open_clip.get_pretrained_cfg(name, weights).get("quick_gelu")
    if quick and not open_clip.get_model_config(name).get("quick_gelu"):
        # OpenCLIP itself only warns, and computes with the wrong activation.
        raise ValueError(f"The weights {weights!r} need another activation: name {name}-quickgelu.")


def normalisation(
    open_clip: Any, model: Any, name: str, weights: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that the model's images are normalised by."""
    found = {"mean": model.visual.image_mean, "std": model.visual.image_std}
    tags = [] if ":" in name else open_clip.list_pretrained_tags_by_model(name)
    if tags and weights not in tags:
        # A file does not say it, and OpenCLIP then takes CLIP's; the published weights of the name do.
        published = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
        for key in found:
            values = {tuple(config[key]) for config in published if config.get(key)}
            if len(values) == 1:
                found[key] = values.pop()
    return tuple(found["mean"]), tuple(found["std"])


def vision_encoder(
    visual: Any, source: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> VisionEncoder:
    """The ``VisionEncoder`` that equals an OpenCLIP vision tower.

    Raises:
        ValueError: If the tower is of another kind.
    """
    transformer = library("open_clip.transformer", "openclip")
    if type(visual) is transformer.VisionTransformer:
        arguments, tensors = own_tower(visual, transformer, source)
        return build_encoder({**arguments, "mean": mean, "std": std}, tensors, source)
    if type(visual).__name__ == "TimmModel":
        extra = [layer for layer in visual.head if not isinstance(layer, nn.Dropout)]
        require(
            source,
            at_most_a_linear_head=len(extra) < 2 and all(isinstance(layer, nn.Linear) for layer in extra),
            a_trunk_without_classifier=isinstance(visual.trunk.head, nn.Identity),
        )
        visual.trunk.pretrained_cfg = {**visual.trunk.pretrained_cfg, "mean": mean, "std": std}
        return timm_encoder(visual.trunk, source, *extra)
    raise ValueError(
        f"{source} has the vision tower {type(visual).__name__}; valid: VisionTransformer, TimmModel."
    )


def own_tower(visual: Any, transformer: Any, source: str) -> tuple[dict[str, Any], Tensors]:
    """Arguments and weights of OpenCLIP's own vision transformer."""
    blocks = visual.transformer.resblocks
    require(
        source,
        square_patches=visual.patch_size[0] == visual.patch_size[1],
        no_attention_pooling=visual.attn_pool is None,
        pooling_by_tok_or_avg=visual.pool_type in POOLINGS,
        the_last_norm_before_pooling=visual.pool_type == "tok" or not visual.final_ln_after_pool,
        plain_blocks=all(type(block) is transformer.ResidualAttentionBlock for block in blocks),
    )
    rows, columns = visual.grid_size
    size, table = visual.patch_size[0], visual.positional_embedding
    pre_norm = isinstance(visual.ln_pre, nn.LayerNorm)
    tensors: Tensors = {
        **patch_embedding(visual.conv1.weight, None),
        **positions(table[1:], rows, columns),
        "prefix.weight": (visual.class_embedding + table[0])[None, None],
        **(copied("norm_pre", visual.ln_pre) if pre_norm else {}),
        **copied("norm", visual.ln_post),
        **({} if visual.proj is None else {"head_proj.weight": visual.proj.T}),
    }
    for i, block in enumerate(blocks):
        tensors |= prefixed(f"blocks.{i}", own_block(block))
    arguments = {
        "img_size": (rows * size, columns * size),
        "patch_size": size,
        "embed_dim": len(visual.class_embedding),
        "depth": len(blocks),
        "num_heads": blocks[0].attn.num_heads,
        "mlp_dim": blocks[0].mlp.c_fc.out_features,
        "activation": activation_of(blocks[0].mlp.gelu, source),
        "norm_eps": visual.ln_post.eps,
        "pre_norm": pre_norm,
        "layer_scale": None if isinstance(blocks[0].ls_1, nn.Identity) else 1.0,
        "prefix_tokens": 1,
        "head": {"type": POOLINGS[visual.pool_type]},
        "summary_dim": None if visual.proj is None else visual.proj.shape[1],
    }
    return arguments, tensors


def own_block(block: Any) -> Tensors:
    """An OpenCLIP block as one of ours."""
    return {
        **copied("norm1", block.ln_1),
        **fused_attention("operator", block.attn),
        **copied("ls1", block.ls_1),
        **copied("norm2", block.ln_2),
        **copied("mlp.fc1", block.mlp.c_fc),
        **copied("mlp.fc2", block.mlp.c_proj),
        **copied("ls2", block.ls_2),
    }
