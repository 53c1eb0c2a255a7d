"""Small models in the files of other libraries, written by those libraries."""

import string

import pytest
import torch

VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
TEXT = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2)
CHARACTERS = sorted(string.ascii_lowercase + ".")


def randomise(model):
    """Gives every parameter a spread, so that no error hides behind a zero or a one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in ("logit_scale", "logit_bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def siglip_tokenizer():
    from transformers import Siglip2Tokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary = {token: i for i, token in enumerate([*special, "▁", *CHARACTERS, "ca", "cat"])}
    return Siglip2Tokenizer(vocabulary, [("c", "a"), ("ca", "t")])


def clip_tokenizer():
    from transformers import CLIPTokenizer

    special = ["<|startoftext|>", "<|endoftext|>"]
    letters = [*CHARACTERS, *(letter + "</w>" for letter in CHARACTERS)]
    vocabulary = {token: i for i, token in enumerate([*letters, "ca", "cat</w>", *special])}
    return CLIPTokenizer(vocabulary, [("c", "a"), ("ca", "t</w>")])


def siglip():
    from transformers import SiglipConfig, SiglipModel

    # 18 is no multiple of the patch, as 384 is none of 14: the library reads 16 of them.
    vision = VISION | dict(image_size=18, patch_size=4, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    text = TEXT | dict(vocab_size=64, max_position_embeddings=12, projection_size=32)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    model.logit_scale.data.fill_(2.5)
    model.logit_bias.data.fill_(-7)
    return model, siglip_tokenizer(), "SiglipImageProcessorPil"


def siglip2():
    from transformers import Siglip2Config, Siglip2Model

    vision = VISION | dict(num_patches=16, patch_size=4, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    text = TEXT | dict(vocab_size=64, max_position_embeddings=12, projection_size=32)
    model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
    return model, siglip_tokenizer(), "Siglip2ImageProcessorPil"


def clip():
    from transformers import CLIPConfig, CLIPModel

    vision = VISION | dict(image_size=16, patch_size=4, hidden_act="quick_gelu", layer_norm_eps=1e-5)
    tokenizer = clip_tokenizer()
    text = TEXT | dict(
        vocab_size=len(tokenizer), max_position_embeddings=12, eos_token_id=tokenizer.eos_token_id
    )
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    return model, tokenizer, "CLIPImageProcessorPil"


def dinov2(**changes):
    from transformers import Dinov2Config, Dinov2Model

    vision = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4)
    return Dinov2Model(Dinov2Config(**vision | dict(mlp_ratio=2, layerscale_value=0.5) | changes)), None, None


def dinov2_swiglu():
    return dinov2(use_swiglu_ffn=True, qkv_bias=False)


MODELS = {f.__name__: f for f in (siglip, siglip2, clip, dinov2, dinov2_swiglu)}


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory):
    """Writes a small model of transformers and returns its folder."""
    transformers = pytest.importorskip("transformers")
    written = {}

    def write(kind):
        if kind not in written:
            torch.manual_seed(0)
            model, tokenizer, processor = MODELS[kind]()
            folder = tmp_path_factory.mktemp(kind)
            randomise(model).save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            if processor is not None:
                getattr(transformers, processor)().save_pretrained(folder)
            written[kind] = folder
        return written[kind]

    return write


SMALL = dict(img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=4)
TIMM = {
    "plain": ("vit_tiny_patch16_224", SMALL),
    "mean_pooled": ("vit_tiny_patch16_224", SMALL | dict(global_pool="avg", fc_norm=False)),
    "siglip": ("vit_base_patch16_siglip_224", SMALL | dict(act_layer="gelu_tanh", mlp_ratio=1.5)),
    "clip": ("vit_base_patch16_clip_quickgelu_224", SMALL),
    "registers": ("vit_small_patch14_reg4_dinov2", SMALL | dict(init_values=0.5)),
    "swiglu": ("vit_giant_patch14_dinov2", SMALL | dict(init_values=0.5, mlp_ratio=2, qkv_bias=False)),
    "not_square": ("vit_tiny_patch16_224", SMALL | dict(img_size=[16, 24])),
}


@pytest.fixture(scope="session")
def timm_folder(tmp_path_factory):
    """Writes a small model of timm and returns its folder."""
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    written = {}

    def write(kind, **changes):
        if kind not in written or changes:
            torch.manual_seed(0)
            name, arguments = TIMM[kind]
            model = randomise(timm.create_model(name, num_classes=5, **arguments | changes))
            folder = tmp_path_factory.mktemp("timm")
            save_for_hf(model, folder, model_args=arguments | changes, safe_serialization=True)
            if changes:
                return folder
            written[kind] = folder
        return written[kind]

    return write


@pytest.fixture(scope="session")
def siglip_words():
    """Makes a small tokenizer of SigLIP 2's class."""
    pytest.importorskip("transformers")
    return siglip_tokenizer
