"""The model against independent implementations, on the same random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_hiera import plain_logits
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import HieraConfig as TransformersConfig
from transformers import HieraForImageClassification

from export.catalog import find_variant
from export.hiera import CONFIGS, Hiera, HieraConfig, create_model
from export.package_spec import load_weights

IMAGE_VARIANTS = [
    "hiera_tiny_224",
    "hiera_small_224",
    "hiera_base_224",
    "hiera_base_plus_224",
    pytest.param("hiera_large_224", marks=pytest.mark.slow),
    pytest.param("hiera_huge_224", marks=pytest.mark.slow),
]


def random_input(name: str, seed: int = 1) -> Tensor:
    size = CONFIGS[name].input_size
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def draw(model: nn.Module, spread: float) -> None:
    """Weights large enough that every part of the model shows in the logits."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(centre, spread, generator=generator)


def drawn(config: HieraConfig) -> Hiera:
    with torch.device("meta"):
        model = Hiera(config)
    model.to_empty(device="cpu").eval()
    draw(model, 0.04)
    return model


def from_transformers(config: HieraConfig) -> HieraForImageClassification:
    theirs = TransformersConfig(
        embed_dim=config.embed_dim,
        depths=list(config.stages),
        num_heads=[config.heads * 2**stage for stage in range(4)],
    )
    theirs.num_labels = config.num_classes
    with torch.device("meta"):
        model = HieraForImageClassification(theirs)
    model.to_empty(device="cpu")
    nn.Module.eval(model)
    return model


@pytest.mark.parametrize("name", IMAGE_VARIANTS)
def test_transformers_agrees_on_weights_loaded_from_its_own_layout(name: str, tmp_path: Path) -> None:
    theirs = from_transformers(CONFIGS[name])
    draw(theirs, 0.03)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = load_weights(find_variant(name), tmp_path / "model.safetensors")
    x = random_input(name)
    with torch.inference_mode():
        expected = theirs(x).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name", ["hiera_tiny_224", "hiera_small_abswin_256", "hiera_demo_objects", "hiera_demo_camera_motion"]
)
def test_a_plain_implementation_on_the_token_grid_agrees(name: str) -> None:
    model = drawn(CONFIGS[name])
    x = random_input(name)
    with torch.inference_mode():
        expected = plain_logits(model.state_dict(), model.config, x)
        assert expected.std() > 0.1
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=0)


def test_a_video_variant_with_temporal_tokens_agrees_with_the_plain_implementation() -> None:
    # The first block of each stage is enough: the rest repeat them.
    config = replace(CONFIGS["hiera_base_16x224"], stages=(1, 1, 1, 1))
    model = drawn(config)
    x = random_input("hiera_base_16x224")
    with torch.inference_mode():
        expected = plain_logits(model.state_dict(), config, x)
        assert expected.std() > 0.1
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_state_dicts_carry_the_original_names(name: str) -> None:
    with torch.device("meta"):
        names = set(create_model(name).state_dict())
    config = CONFIGS[name]
    if config.is_video:
        assert {"pos_embed_spatial", "pos_embed_temporal"} <= names
    else:
        assert "pos_embed" in names
    last = sum(config.stages) - 1
    assert {"patch_embed.proj.weight", f"blocks.{last}.attn.qkv.bias", f"blocks.{last}.mlp.fc2.weight"} <= names
    assert {"norm.weight", "head.projection.weight"} <= names
    assert ("blocks.1.proj.weight" in names) == (config.stages[0] == 1 and not config.expand_by_pooling)


def test_the_order_of_frames_matters_to_a_video_model() -> None:
    model = drawn(CONFIGS["hiera_demo_camera_motion"])
    x = random_input("hiera_demo_camera_motion")
    swapped = x.clone()
    swapped[:, :, [3, 11]] = x[:, :, [11, 3]]
    with torch.inference_mode():
        assert (model(x) - model(swapped)).abs().max() > 1e-3


def test_features_are_what_the_head_reads() -> None:
    model = create_model("hiera_demo_objects").eval()
    x = random_input("hiera_demo_objects")
    with torch.inference_mode():
        features = model.forward_features(x)
        assert features.shape == (1, model.config.feature_dim)
        torch.testing.assert_close(model.head(features), model(x))


def test_an_unknown_variant_is_answered_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match="hiera_tiny_224"):
        create_model("hiera_nano_224")


def test_a_geometry_that_mask_units_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="not divisible into mask units"):
        replace(CONFIGS["hiera_tiny_224"], input_size=(200, 200))
