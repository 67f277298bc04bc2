"""The masked autoencoder against independent implementations, and what masking promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import HieraConfig as TransformersConfig
from transformers import HieraForPreTraining

from export.checkpoints import load_classifier, read_checkpoint
from export.errors import CheckpointError
from export.hiera import CONFIGS, DropPath, Hiera, HieraConfig
from training.mae import (
    DecoderConfig,
    MaskedAutoencoder,
    load_pretrained,
    pixel_labels,
    shuffled_windows,
    visible_windows,
)

IMAGE = HieraConfig(16, 1, (1, 1, 2, 1), 4, (96, 96))
VIDEO = HieraConfig(16, 1, (1, 1, 2, 1), 4, (4, 64, 64), (3, 7, 7), (2, 4, 4), (1, 3, 3), (1, 2, 2), (1, 8, 8))
DECODER = DecoderConfig(dim=32, depth=2, heads=4)
BOTH = pytest.mark.parametrize("config", [IMAGE, VIDEO], ids=["image", "video"])

# Of the original package, for `filled(VIDEO)`: the loss, and for each sample six tokens' first, second and last values.
LOSS = 1.112576
PREDICTED = [
    [-0.296791, 0.092529, 0.094573],
    [-0.294214, -0.023837, -0.149799],
    [-0.163358, 0.159328, -0.188674],
    [-0.308222, 0.438737, -0.506791],
    [-0.302977, 0.104350, 0.000156],
    [-0.678341, 0.279247, -0.408326],
    [-0.038491, 0.036144, -0.165354],
    [-0.218538, 0.027732, -0.364163],
    [-0.343516, -0.063827, -0.494871],
    [-0.629399, -0.159235, 0.083857],
    [-0.311786, 0.143747, -0.033491],
    [-0.453799, -0.230743, 0.283588],
]


def scattered(count: int, phase: float) -> Tensor:
    """Numbers between -1 and 1 without a pattern, that another library's generator is not needed for."""
    return torch.sin((torch.arange(count, dtype=torch.float64) + phase) ** 1.5).float()


def fill(model: nn.Module) -> None:
    """Weights large enough that every part shows, a function of the parameters' names alone."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            values = 0.08 * scattered(parameter.numel(), sum(name.encode()))
            parameter.copy_(values.view_as(parameter) + centre)


def filled(config: HieraConfig, mask_ratio: float | None = 0.5) -> MaskedAutoencoder:
    model = MaskedAutoencoder(config, DECODER, mask_ratio).eval()
    fill(model)
    return model


def inputs_of(config: HieraConfig, batch: int = 2) -> tuple[Tensor, Tensor]:
    shape = (batch, 3, *config.input_size)
    x = scattered(torch.Size(shape).numel(), 1.0).view(shape)
    return x, scattered(batch * config.windows, 2.0).view(batch, -1).argsort(dim=1)


def from_transformers(name: str) -> str:
    """The original name of a parameter of HieraForPreTraining with stages of 1, 1, 2 and 1 blocks."""
    name = re.sub(r"^(hiera|decoder|multiscale_fusion)\.", "", name)
    name = re.sub(
        r"^encoder\.stages\.(\d)\.layers\.(\d)", lambda m: f"blocks.{(0, 1, 2, 4)[int(m[1])] + int(m[2])}", name
    )
    for theirs, ours in (
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        ("layernorm_before.", "norm1."),
        ("layernorm_after.", "norm2."),
        ("decoder_block.layers.", "decoder_blocks."),
        ("decoder_embeddings.", "decoder_embed."),
        ("decoder_position_embeddings", "decoder_pos_embed"),
    ):
        name = name.replace(theirs, ours)
    return name


def test_transformers_agrees_on_predictions_loss_and_gradients() -> None:
    theirs = HieraForPreTraining(
        TransformersConfig(
            embed_dim=16,
            image_size=[96, 96],
            depths=[1, 1, 2, 1],
            num_heads=[1, 2, 4, 8],
            num_query_pool=2,
            mask_ratio=0.5,
            decoder_hidden_size=32,
            decoder_depth=2,
            decoder_num_heads=4,
        )
    )
    nn.Module.eval(theirs)
    fill(theirs)
    ours = MaskedAutoencoder(IMAGE, DECODER, 0.5).eval()
    ours.load_state_dict({from_transformers(name): value for name, value in theirs.state_dict().items()})
    x, _ = inputs_of(IMAGE)
    noise = scattered(18, 3.0).view(2, 9)
    expected = theirs(x, noise=noise)
    order = noise.argsort(dim=1)
    assert expected.logits.std() > 0.1
    torch.testing.assert_close(ours.predict(x, order), expected.logits, atol=1e-5, rtol=0)
    loss = ours(x, order)
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=0)
    loss.backward()
    expected.loss.backward()
    gradients = {from_transformers(name): parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-3, msg=name)


def test_the_original_package_agrees_on_video() -> None:
    """What `MaskedAutoencoderHiera` of hiera-transformer 0.1.4 gave for these weights and inputs."""
    x, order = inputs_of(VIDEO)
    model = filled(VIDEO)
    with torch.inference_mode():
        predicted = model.predict(x, order)
        assert float(model(x, order)) == pytest.approx(LOSS, abs=1e-5)
    seen = predicted[:, [0, 3, 6, 15, 17, 28], :][:, :, [0, 1, -1]]  # the last two are of the second moment
    torch.testing.assert_close(seen.flatten(0, 1), torch.tensor(PREDICTED), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("hiera_tiny_224", {"decoder_pos_embed": (1, 196, 512), "multi_scale_fusion_heads.0.weight": (768, 96, 4, 4)}),
        (
            "hiera_base_16x224",
            {"decoder_pos_embed": (1, 1568, 512), "multi_scale_fusion_heads.1.weight": (768, 192, 1, 2, 2)},
        ),
    ],
)
def test_parameters_have_the_names_and_shapes_of_the_original_files(
    name: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    with torch.device("meta"):
        model, encoder = MaskedAutoencoder(CONFIGS[name]), Hiera(CONFIGS[name])
    state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes.items() <= state.items()
    assert state["decoder_pred.weight"] == (768, 512)
    assert {"mask_token", "encoder_norm.weight", "decoder_blocks.7.mlp.fc2.bias", "decoder_norm.bias"} <= state.keys()
    body = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    assert {key for key in body if key not in state} == {
        "norm.weight",
        "norm.bias",
        "head.projection.weight",
        "head.projection.bias",
    }
    assert all(state[key] == shape for key, shape in body.items() if key in state)


@BOTH
def test_what_is_hidden_does_not_reach_the_encoder(config: HieraConfig) -> None:
    model = filled(config)
    x, order = inputs_of(config)
    grid = [size // unit for size, unit in zip(config.token_grid, config.mask_unit_size, strict=True)]
    pixels = [size // units for size, units in zip(config.input_size, grid, strict=True)]
    place = torch.unravel_index(order[0, -1], grid)
    unit = (slice(None), *(slice(int(p) * n, int(p + 1) * n) for p, n in zip(place, pixels, strict=True)))
    changed = x.clone()
    changed[0][unit] += 1.0
    with torch.inference_mode():
        assert torch.equal(model.encode(x, order), model.encode(changed, order))
        assert float((model(x, order) - model(changed, order)).abs()) < 1e-4  # labels are less their mean
        shown = order.flip(dims=[1])
        assert not torch.equal(model.encode(x, shown), model.encode(changed, shown))


@BOTH
def test_only_the_set_of_visible_windows_matters(config: HieraConfig) -> None:
    model = filled(config)
    x, order = inputs_of(config)
    shown, hidden = order[:, : model.visible], order[:, model.visible :]
    other = torch.cat([shown.flip(dims=[1]), hidden.roll(1, dims=1)], dim=1)
    with torch.inference_mode():
        torch.testing.assert_close(model.predict(x, order), model.predict(x, other), atol=1e-5, rtol=0)
        torch.testing.assert_close(model(x, order), model(x, other), atol=1e-5, rtol=0)


@BOTH
def test_every_parameter_learns(config: HieraConfig) -> None:
    model = MaskedAutoencoder(config, DECODER, 0.5)
    x, order = inputs_of(config)
    model(x, order).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


def test_fresh_weights_are_drawn_as_the_release_draws_them() -> None:
    """Xavier's uniform distribution for matrices, the patch kernel among them, and no biases."""
    model = MaskedAutoencoder(IMAGE, DecoderConfig(dim=256, depth=1, heads=4), 0.5)
    assert not any(module.bias.any() for module in model.modules() if isinstance(module, nn.Linear))
    for weight in (model.decoder_pred.weight, model.patch_embed.proj.weight.flatten(1)):
        bound = (6 / sum(weight.shape)) ** 0.5
        assert 0.95 * bound < float(weight.detach().abs().max()) <= bound
    assert 0.01 < float(model.decoder_pos_embed.detach().std()) < 0.03


def test_labels_of_an_image_are_its_pixels_colour_by_colour() -> None:
    x, _ = inputs_of(IMAGE)
    labels = pixel_labels(x, 16, IMAGE)
    patch = x[1, :, 32:48, 16:32].flatten()  # the third row's second token, of six in a row
    torch.testing.assert_close(labels[1, 13], (patch - patch.mean()) / patch.std(), atol=1e-4, rtol=0)


def test_labels_of_a_clip_are_the_first_frame_of_each_token_pixel_by_pixel() -> None:
    x, _ = inputs_of(VIDEO)
    labels = pixel_labels(x, 16, VIDEO)
    patch = x[1, :, 2, 16:32, 48:64].permute(1, 2, 0).flatten()  # the second moment's second row's last token
    torch.testing.assert_close(labels[1, 16 + 7], (patch - patch.mean()) / patch.std(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "visible"), [("hiera_tiny_224", 19), ("hiera_base_16x224", 39), ("hiera_demo_objects", 6)]
)
def test_the_paper_hides_most_of_an_image_and_nearly_all_of_a_clip(name: str, visible: int) -> None:
    with torch.device("meta"):
        assert MaskedAutoencoder(CONFIGS[name], DECODER).visible == visible


@pytest.mark.parametrize("mask_ratio", [0.0, 0.9, 1.0])
def test_a_mask_of_everything_or_nothing_is_refused(mask_ratio: float) -> None:
    with pytest.raises(ValueError, match="of 9 mask units visible"):
        visible_windows(IMAGE, mask_ratio)


def test_masks_are_different_for_each_sample_and_told_by_the_generator() -> None:
    first, second = (shuffled_windows(4, 49, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first.sort(dim=1).values, torch.arange(49).expand(4, -1))


def test_drop_path_drops_all_windows_of_a_sample_or_none() -> None:
    torch.manual_seed(0)
    dropped = DropPath(0.5, windows=4).train()(torch.ones(64 * 4, 2, 3)).view(64, -1)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped.amin(dim=1), dropped.amax(dim=1))
    # In the encoder a sample has its visible windows alone.
    assert MaskedAutoencoder(IMAGE, DECODER, 0.5, drop_path_rate=0.5).train()(*inputs_of(IMAGE)).isfinite()


@pytest.mark.parametrize("file", ["mae.pth", "mae.safetensors"])
def test_checkpoints_load_into_the_autoencoder_and_are_refused_for_classification(file: str, tmp_path: Path) -> None:
    path, state = tmp_path / file, filled(IMAGE).state_dict()
    torch.save({"model_state": state}, path) if file.endswith(".pth") else save_file(state, path)
    model = MaskedAutoencoder(IMAGE, DECODER)
    load_pretrained(model, path)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="masked pretraining"):
        load_classifier(Hiera(IMAGE), read_checkpoint(path, IMAGE), file)


def test_a_checkpoint_of_another_decoder_is_refused(tmp_path: Path) -> None:
    save_file(filled(IMAGE).state_dict(), tmp_path / "mae.safetensors")
    with pytest.raises(CheckpointError, match=r"with this decoder(.|\n)*decoder_pred"):
        load_pretrained(MaskedAutoencoder(IMAGE, DecoderConfig(64, 2, 4)), tmp_path / "mae.safetensors")
