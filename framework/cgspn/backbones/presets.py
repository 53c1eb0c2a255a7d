"""The ViT sizes and their C-GSPN twins, by name."""

from __future__ import annotations

from typing import Any

from cgspn.backbones.vision_transformer import VisionEncoder
from cgspn.registry import BACKBONES

SIZES: dict[str, dict[str, Any]] = {
    "demo_patch8": dict(img_size=64, patch_size=8, embed_dim=128, depth=4, num_heads=4, mlp_dim=256),
    "tiny_patch16": dict(img_size=224, patch_size=16, embed_dim=192, depth=12, num_heads=3, mlp_dim=768),
    "base_patch16": dict(img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12, mlp_dim=3072),
    "large_patch14": dict(img_size=224, patch_size=14, embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096),
    "so400m_patch14": dict(img_size=378, patch_size=14, embed_dim=1152, depth=27, num_heads=16, mlp_dim=4304),
}

for _size, _arguments in SIZES.items():
    BACKBONES.register_preset(f"vit_{_size}", VisionEncoder, **_arguments)
    BACKBONES.register_preset(f"cgspn_{_size}", VisionEncoder, **_arguments, operator={"type": "cgspn"})
