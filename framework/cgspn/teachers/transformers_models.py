"""Teachers from Hugging Face transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cgspn.registry import TEACHERS
from cgspn.teachers.base import Teacher
from cgspn.teachers.conversion import (
    Tensors,
    activation,
    build_encoder,
    copied,
    first_line,
    library,
    patch_embedding,
    positions,
    prefixed,
    readable,
    side,
    stacked,
)

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@TEACHERS.register_module(name="transformers")
class TransformersTeacher(Teacher):
    """A SigLIP, SigLIP 2, CLIP or DINOv2 model of transformers.

    SigLIP 2 comes as two classes: at a fixed resolution as ``SiglipModel`` (``model_type`` siglip), and
    NaFlex as ``Siglip2Model`` (siglip2). Any image size works with each: positions are resampled as the
    library does on request. Sizes that are no multiple of the patch are zero-padded, where the library
    would cut them. DINOv2 has no text tower.

    Args:
        weights: A folder that ``save_pretrained`` wrote, with its tokenizer and image processor, or the
            name of a model on the Hugging Face hub.

    Raises:
        ValueError: If there is no such model, it is of another kind or lacks weights or a tokenizer.
    """

    def __init__(self, weights: str) -> None:
        source = locate(weights)
        transformers = library("transformers", "transformers")
        with readable(f"{weights} is no model that transformers can load"):
            config = transformers.AutoConfig.from_pretrained(source)
        kind = KINDS.get(config.model_type)
        if kind is None:
            raise ValueError(f"{weights} is a {config.model_type!r} model; valid: {', '.join(KINDS)}.")
        model = load_model(getattr(transformers, kind.model), source, weights)
        arguments, tensors = kind.convert(model, weights)
        mean, std = normalisation(transformers, source, kind)
        encoder = build_encoder({**arguments, "mean": mean, "std": std}, tensors, weights)
        super().__init__(
            encoder,
            text_tower(transformers, model, source, weights, kind) if kind.padding else None,
            model.logit_scale.item() if hasattr(model, "logit_scale") else None,
            model.logit_bias.item() if hasattr(model, "logit_bias") else None,
        )


class TransformersText(nn.Module):
    """A text tower of transformers with its tokenizer.

    Args:
        model: Maps ``input_ids`` to an output with ``pooler_output``.
        projection: The linear layer behind it, or None.
        tokenizer: The tokenizer.
        padding: How it pads: to the longest text, or always to ``length``.
        length: Tokens kept of a text.
        lowercase: Whether the tower was trained on lower case only.
    """

    def __init__(
        self,
        model: nn.Module,
        projection: nn.Module | None,
        tokenizer: Any,
        padding: str,
        length: int,
        lowercase: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.projection = projection or nn.Identity()
        self.hf_tokenizer, self.padding, self.length = tokenizer, padding, length
        self.lowercase = lowercase

    def tokenizer(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """What the tower reads: ``input_ids`` (B, L) and, where its tokenizer makes one, a mask."""
        texts = [text.lower() for text in texts] if self.lowercase else list(texts)
        return self.hf_tokenizer(
            texts, padding=self.padding, truncation=True, max_length=self.length, return_tensors="pt"
        )

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Tokenises and embeds B texts, (B, C)."""
        device = next(self.model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in self.tokenizer(texts).items()}
        return self.projection(self.model(**inputs).pooler_output)


def locate(weights: str) -> str:
    """The folder or hub name that ``weights`` means.

    Raises:
        ValueError: If it is neither.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{weights} holds no config.json; give a folder that save_pretrained wrote.")
        return str(path)
    if path.exists() or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", weights):
        raise ValueError(
            f"There is no folder {weights}; give a folder that save_pretrained wrote or a name on the hub, "
            "such as google/siglip2-so400m-patch14-384."
        )
    return weights


def load_model(model_class: Any, source: str, weights: str) -> Any:
    """The model in float32, with every weight from the files."""
    with readable(f"{weights} is no model that transformers can load"):
        model, report = model_class.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    # transformers would leave them as they were initialised, with a warning.
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{weights} lacks {missing[0]}: it belongs to another model.")
    return model


def normalisation(transformers: Any, source: str, kind: Kind) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation in the image processor's file, or else the kind's own."""
    try:
        stored, _ = transformers.ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:
        stored = {}
    mean, std = stored.get("image_mean") or kind.mean, stored.get("image_std") or kind.std
    return tuple(mean), tuple(std)


def text_tower(transformers: Any, model: Any, source: str, weights: str, kind: Kind) -> TransformersText:
    """The text half of a two-tower model."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except Exception as error:
        raise ValueError(
            f"{weights} has no tokenizer that transformers can load: {first_line(error)}"
        ) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        # Without its file transformers makes one without words, which reads every text alike.
        raise ValueError(f"{weights} has no tokenizer: {type(tokenizer).__name__} finds no vocabulary there.")
    length = model.config.text_config.max_position_embeddings
    projection = getattr(model, "text_projection", None)
    assert kind.padding is not None
    return TransformersText(model.text_model, projection, tokenizer, kind.padding, length, kind.lowercase)


def siglip(model: Any, source: str) -> tuple[dict[str, Any], Tensors]:
    """Arguments and weights of SigLIP's vision tower, of fixed resolution or NaFlex."""
    config, tower = model.config.vision_config, model.vision_model
    embeddings, patch = tower.embeddings, config.patch_size
    if not getattr(config, "vision_use_head", True):
        raise ValueError(f"{source} has no pooling head (vision_use_head is off), so no summary.")
    weight, naflex = embeddings.patch_embedding.weight, hasattr(config, "num_patches")
    if naflex:
        # It reads flattened patches whose last axis is the channel.
        weight = weight.unflatten(1, (patch, patch, config.num_channels)).permute(0, 3, 1, 2)
    table = embeddings.position_embedding.weight
    grid, head = side(len(table), source), tower.head
    q, kv = head.attention.in_proj_weight.split([len(weight), 2 * len(weight)])
    q_bias, kv_bias = head.attention.in_proj_bias.split([len(weight), 2 * len(weight)])
    tensors = {
        **patch_embedding(weight, embeddings.patch_embedding.bias),
        **positions(table, grid, grid),
        **layers(tower.encoder.layers, siglip_layer),
        **copied("norm", tower.post_layernorm),
        **{"head.probe": head.probe, "head.q.weight": q, "head.q.bias": q_bias},
        **{"head.kv.weight": kv, "head.kv.bias": kv_bias},
        **copied("head.proj", head.attention.out_proj),
        **copied("head.norm", head.layernorm),
        **copied("head.mlp.fc1", head.mlp.fc1),
        **copied("head.mlp.fc2", head.mlp.fc2),
    }
    resampling = "bilinear_antialias" if naflex else "bicubic"
    return tower_arguments(config, grid, source) | {"pos_resampling": resampling}, tensors


def clip(model: Any, source: str) -> tuple[dict[str, Any], Tensors]:
    """Arguments and weights of CLIP's vision tower; the norm after it is applied to every token."""
    config, tower = model.config.vision_config, model.vision_model
    embeddings = tower.embeddings
    table = embeddings.position_embedding.weight
    grid = side(len(table) - 1, source)
    tensors = {
        **patch_embedding(embeddings.patch_embedding.weight, None),
        **positions(table[1:], grid, grid),
        "prefix.weight": (embeddings.class_embedding + table[0])[None, None],
        **copied("norm_pre", tower.pre_layrnorm),
        **layers(tower.encoder.layers, siglip_layer),
        **copied("norm", tower.post_layernorm),
        **copied("head_proj", model.visual_projection),
    }
    arguments = tower_arguments(config, grid, source) | {
        "pos_resampling": "bicubic",
        "pre_norm": True,
        "prefix_tokens": 1,
        "head": {"type": "token"},
        "summary_dim": model.config.projection_dim,
    }
    return arguments, tensors


def dinov2(model: Any, source: str) -> tuple[dict[str, Any], Tensors]:
    """Arguments and weights of DINOv2."""
    config, embeddings = model.config, model.embeddings
    table = embeddings.position_embeddings[0]
    grid = side(len(table) - 1, source)
    projection = embeddings.patch_embeddings.projection
    tensors = {
        **patch_embedding(projection.weight, projection.bias),
        **positions(table[1:], grid, grid),
        "prefix.weight": embeddings.cls_token + table[0],
        **layers(model.encoder.layer, dinov2_layer),
        **copied("norm", model.layernorm),
    }
    hidden = tensors["blocks.0.mlp.fc2.weight"].shape[1]
    arguments = tower_arguments(config, grid, source, hidden) | {
        "pos_resampling": "bicubic",
        "prefix_tokens": 1,
        "head": {"type": "token"},
        "layer_scale": config.layerscale_value,
        "swiglu": config.use_swiglu_ffn,
        "qkv_bias": config.qkv_bias,
    }
    return arguments, tensors


def tower_arguments(config: Any, grid: int, source: str, hidden: int | None = None) -> dict[str, Any]:
    """The arguments of ``VisionEncoder`` that all kinds name alike."""
    return {
        "img_size": grid * config.patch_size,
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_dim": hidden or config.intermediate_size,
        "activation": activation(config.hidden_act, source),
        "norm_eps": config.layer_norm_eps,
    }


def layers(modules: Any, convert: Callable[[Any], Tensors]) -> Tensors:
    """The tensors of all blocks."""
    tensors: Tensors = {}
    for i, module in enumerate(modules):
        tensors |= prefixed(f"blocks.{i}", convert(module))
    return tensors


def siglip_layer(layer: Any) -> Tensors:
    """A layer of SigLIP or CLIP as a block."""
    attention = layer.self_attn
    return {
        **copied("norm1", layer.layer_norm1),
        **stacked("operator.qkv", attention.q_proj, attention.k_proj, attention.v_proj),
        **copied("operator.proj", attention.out_proj),
        **copied("norm2", layer.layer_norm2),
        **copied("mlp.fc1", layer.mlp.fc1),
        **copied("mlp.fc2", layer.mlp.fc2),
    }


def dinov2_layer(layer: Any) -> Tensors:
    """A layer of DINOv2 as a block."""
    attention, mlp = layer.attention, layer.mlp
    swiglu = hasattr(mlp, "gate_proj")
    return {
        **copied("norm1", layer.norm1),
        **stacked("operator.qkv", attention.q_proj, attention.k_proj, attention.v_proj),
        **copied("operator.proj", attention.o_proj),
        "ls1.gamma": layer.layer_scale1.lambda1,
        **copied("norm2", layer.norm2),
        **(stacked("mlp.fc1", mlp.gate_proj, mlp.up_proj) if swiglu else copied("mlp.fc1", mlp.fc1)),
        **copied("mlp.fc2", mlp.down_proj if swiglu else mlp.fc2),
        "ls2.gamma": layer.layer_scale2.lambda1,
    }


class Kind(NamedTuple):
    """One ``model_type``: its class, its conversion, its normalisation and how it reads texts, if any."""

    model: str
    convert: Callable[[Any, str], tuple[dict[str, Any], Tensors]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: str | None
    lowercase: bool = False


# SigLIP's own tokenizers lower the case; Gemma's, which SigLIP 2 names at fixed resolution, does not.
KINDS = {
    "siglip": Kind("SiglipModel", siglip, HALF, HALF, "max_length", lowercase=True),
    "siglip2": Kind("Siglip2Model", siglip, HALF, HALF, "max_length", lowercase=True),
    "clip": Kind("CLIPModel", clip, CLIP_MEAN, CLIP_STD, "longest"),
    "dinov2": Kind("Dinov2Model", dinov2, IMAGENET_MEAN, IMAGENET_STD, None),
}
