#!/usr/bin/env python3
"""Writes the golden files of evaluation's networks and metrics: DINOv2 and CLIP as `transformers` computes them with small
random weights, SSIM and PSNR as scikit-image does, pictures resized by Pillow.

    python scripts/golden_metrics.py [OUTDIR]         OUTDIR is tests/data/golden unless given

Pictures are given by a formula that the tests know too. Needs torch, transformers, scikit-image, pillow, safetensors.
"""
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "tests/data/golden"


def save(name, tensors):
    path = OUT / f"{name}.safetensors"
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, path, metadata={"script": "scripts/golden_metrics.py"})
    print(f"{path} {path.stat().st_size}")


def formula(w, h):
    """A smooth picture with an edge, [h,w,3] in bytes."""
    y, x, c = np.mgrid[:h, :w, :3]
    return ((x * (3 + c) + y * (5 - c) + 40 * (x > y) + (x * y) // 16) % 256).astype(np.uint8)


def resized(picture, size):
    """PIL's bicubic, the horizontal pass first as in all of Pillow up to 12; 13 begins with the cheaper one, which rounds differently."""
    return picture.resize((size[0], picture.height), Image.BICUBIC).resize(size, Image.BICUBIC)


def moved(module, by):
    """Weights that make every part count."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.add_(by * torch.randn_like(p))
    return module.eval()


def normalised(pictures, mean, std):
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


# ---------------------------------------------------------------- DINOv2
def dinov2_names(state):
    """transformers' state dict under facebookresearch/dinov2's names."""
    out = {"cls_token": state["embeddings.cls_token"], "mask_token": state["embeddings.mask_token"], "pos_embed": state["embeddings.position_embeddings"]}
    for part in ("weight", "bias"):
        out[f"patch_embed.proj.{part}"] = state[f"embeddings.patch_embeddings.projection.{part}"]
        out[f"norm.{part}"] = state[f"layernorm.{part}"]
        for n in range(2):
            a, b = f"encoder.layer.{n}", f"blocks.{n}"
            out[f"{b}.attn.qkv.{part}"] = torch.cat([state[f"{a}.attention.{p}_proj.{part}"] for p in "qkv"])
            out[f"{b}.attn.proj.{part}"] = state[f"{a}.attention.o_proj.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{b}.{name}.{part}"] = state[f"{a}.{name}.{part}"]
    for n in range(2):
        for i in (1, 2):
            out[f"blocks.{n}.ls{i}.gamma"] = state[f"encoder.layer.{n}.layer_scale{i}.lambda1"]
    return out


def dinov2():
    torch.manual_seed(20)
    config = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=14)
    model = moved(Dinov2Model(Dinov2Config(image_size=518, **config)), 0.2)
    assert model.config.hidden_act == "gelu" and model.config.layer_norm_eps == 1e-6
    tensors = {f"weights.{k}": v for k, v in dinov2_names(model.state_dict()).items()}
    pictures = [Image.fromarray(formula(60, 44)), Image.fromarray(formula(33, 700))]

    def run(model, side):
        pixels = normalised([np.asarray(resized(p, (side, side))) for p in pictures], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        with torch.no_grad():
            return model(pixel_values=pixels).last_hidden_state[:, 0]

    tensors["class_token_518"] = run(model, 518)
    # At 224 as the original: the embeddings go through interpolate with a scale factor, then the same network.
    positions = model.embeddings.position_embeddings
    patches = positions[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, scale_factor=((16 + 0.1) / 37, (16 + 0.1) / 37), mode="bicubic", antialias=False)
    assert patches.shape[-2:] == (16, 16)
    tensors["positions_224"] = torch.cat([positions[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    small = Dinov2Model(Dinov2Config(image_size=224, **config)).eval()
    small.load_state_dict(model.state_dict() | {"embeddings.position_embeddings": tensors["positions_224"]})
    tensors["class_token_224"] = run(small, 224)
    save("dinov2", tensors)


# ---------------------------------------------------------------- CLIP
def openai_names(state):
    """transformers' state dict under openai/CLIP's names."""
    v = "vision_model."
    out = {"visual.class_embedding": state[v + "embeddings.class_embedding"], "visual.positional_embedding": state[v + "embeddings.position_embedding.weight"],
           "visual.conv1.weight": state[v + "embeddings.patch_embedding.weight"], "visual.proj": state["visual_projection.weight"].T}
    for part in ("weight", "bias"):
        out[f"visual.ln_pre.{part}"], out[f"visual.ln_post.{part}"] = state[f"{v}pre_layrnorm.{part}"], state[f"{v}post_layernorm.{part}"]
        for n in range(2):
            a, b = f"{v}encoder.layers.{n}", f"visual.transformer.resblocks.{n}"
            out[f"{b}.attn.in_proj_{part}"] = torch.cat([state[f"{a}.self_attn.{p}_proj.{part}"] for p in "qkv"])
            out[f"{b}.attn.out_proj.{part}"] = state[f"{a}.self_attn.out_proj.{part}"]
            for theirs, ours in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):
                out[f"{b}.{ours}.{part}"] = state[f"{a}.{theirs}.{part}"]
    return out


def clip():
    from torchvision.transforms import CenterCrop
    torch.manual_seed(21)
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=32, projection_dim=8)
    model = moved(CLIPVisionModelWithProjection(config), 0.1)
    assert config.hidden_act == "quick_gelu" and config.layer_norm_eps == 1e-5
    # clean-fid's img_preprocess_clip (torchvision's Resize(224) and CenterCrop(224)) and CLIP_fx
    pictures = []
    for w, h in ((60, 44), (331, 700)):
        short = min(w, h)
        picture = resized(Image.fromarray(formula(w, h)), (224 * w // short, 224 * h // short))
        pictures.append(np.asarray(CenterCrop(224)(picture)))
    with torch.no_grad():
        features = model(pixel_values=normalised(pictures, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))).image_embeds
    state = model.state_dict()
    tensors = {f"weights.{k}": v for k, v in state.items()} | {f"original.{k}": v for k, v in openai_names(state).items() if v.numel() < 2000 or "visual.proj" in k}
    # The two big ones are the same tensors under both names.
    save("clip", tensors | dict(features=features))


# ---------------------------------------------------------------- SSIM, PSNR
def pairs():
    """SSIM with Wang et al.'s settings, PSNR of bytes, of a picture and two worse ones."""
    rng = np.random.default_rng(22)
    tensors = {}
    for i, (w, h) in enumerate(((64, 48), (31, 11))):
        a = formula(w, h)
        noisy = np.clip(a + rng.normal(0, 20, a.shape), 0, 255).round().astype(np.uint8)
        shifted = np.roll(a, 2, axis=1)
        tensors[f"{i}.noisy"] = torch.from_numpy(noisy)
        found = [(structural_similarity(a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255),
                  peak_signal_noise_ratio(a, b, data_range=255)) for b in (noisy, shifted)]
        tensors[f"{i}.expected"] = torch.tensor(found, dtype=torch.float64)
    save("pairs", tensors)


torch.set_num_threads(1)
dinov2()
clip()
pairs()
