"""Fine-tuning starts from classifiers and from pretrained backbones, of all layouts, and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import HieraConfig, HieraForPreTraining

from export.catalog import CC_BY_NC, Download, find_variant
from export.download import WeightsSource
from export.errors import CheckpointError, DownloadFailed, NoWeights
from export.hiera import create_model
from training.starting_weights import Start, starting_model

State = dict[str, Tensor]
NAME = "hiera_demo_objects"
NOWHERE = "http://127.0.0.1:9"
TEN = tuple("abcdefghij")


@pytest.fixture
def state() -> State:
    torch.manual_seed(3)
    return {name: torch.randn_like(tensor) for name, tensor in create_model(NAME).state_dict().items()}


def start_from(path: Path, classes: tuple[str, ...] = ("cat", "dog"), name: str = NAME) -> Start:
    source = WeightsSource(path.parent / "cache", NOWHERE)
    return starting_model(find_variant(name), path, classes, 0.0, source, lambda _: None)


def saved(state: State, folder: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def renamed(state: State, *changes: tuple[str, str]) -> State:
    for old, new in changes:
        state = {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in state.items()}
    return state


def in_timm_layout(state: State) -> State:
    return renamed(state, ("head.projection.", "head.fc."), ("norm.", "head.norm."))


def pretrained(state: State) -> State:
    """As the original release names what MAE leaves."""
    state = {name: tensor for name, tensor in renamed(state, ("norm.", "encoder_norm.")).items() if "head" not in name}
    of_decoder = "decoder_pos_embed decoder_embed.weight decoder_blocks.0.norm1.weight decoder_pred.weight"
    return state | {
        name: torch.ones(2) for name in (*of_decoder.split(), "mask_token", "multi_scale_fusion_heads.0.bias")
    }


@pytest.mark.parametrize("layout", [dict, in_timm_layout, pretrained], ids=["original", "timm", "mae"])
def test_the_backbone_is_the_checkpoints_and_the_head_is_new(
    state: State, layout: Callable[[State], State], tmp_path: Path
) -> None:
    start = start_from(saved(layout(state), tmp_path))
    assert not start.head_kept
    for name, tensor in start.model.state_dict().items():
        if name.startswith("head."):
            assert len(tensor) == 2
            assert float(tensor.abs().max()) < 0.05
        else:
            torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in start.model.parameters())


def test_what_transformers_pretrained_is_read(tmp_path: Path) -> None:
    config = HieraConfig(
        image_size=[32, 32],
        patch_size=[5, 5],
        patch_stride=[2, 2],
        patch_padding=[2, 2],
        embed_dim=48,
        depths=[1, 3, 2],
        num_heads=[1, 2, 4],
        num_query_pool=2,
        masked_unit_size=[4, 4],
        masked_unit_attention=[True, False, False],
        decoder_hidden_size=16,
        decoder_depth=1,
        decoder_num_heads=2,
    )
    torch.manual_seed(0)
    theirs = HieraForPreTraining(config).state_dict()
    theirs["encoder_norm.bias"] = torch.arange(192.0)
    ours = start_from(saved(theirs, tmp_path)).model.state_dict()
    assert torch.equal(ours["norm.bias"], torch.arange(192.0))
    assert torch.equal(ours["blocks.4.mlp.fc1.weight"], theirs["hiera.encoder.stages.2.layers.0.mlp.fc1.weight"])


def test_a_head_is_kept_only_with_the_same_classes_beside_it(state: State, tmp_path: Path) -> None:
    path = saved(state, tmp_path)
    assert not start_from(path, TEN).head_kept
    path.with_suffix(".txt").write_bytes(b"notes of mine\n\nin no \xffcoding")
    assert not start_from(path, TEN).head_kept
    path.with_suffix(".txt").write_text("\n".join(reversed(TEN)))
    assert not start_from(path, TEN).head_kept
    path.with_suffix(".txt").write_text("\n".join(TEN))
    start = start_from(path, TEN)
    assert start.head_kept
    assert torch.equal(start.model.head.projection.weight, state["head.projection.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {name: t for name, t in state.items() if name != "norm.bias"}, "missing .*norm.bias"),
        (lambda state: state | {"blocks.9.norm1.weight": torch.ones(3)}, "extra .*blocks.9.norm1.weight"),
        (lambda state: state | {"pos_embed": torch.ones(1, 3, 48)}, "pos_embed is 1x3x48"),
        (lambda state: state | {"norm.bias": torch.full((192,), torch.nan)}, "not a number"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(
    state: State, change: Callable[[State], State], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        start_from(saved(change(state), tmp_path))


def test_weights_of_another_input_keep_it(tmp_path: Path) -> None:
    state = create_model(NAME, input_size=(48, 48)).state_dict()
    assert start_from(saved(dict(state), tmp_path)).model.config.input_size == (48, 48)


def test_a_licence_goes_along(state: State, tmp_path: Path) -> None:
    path = saved(state, tmp_path)
    assert start_from(path).licence is None
    path.with_suffix(".json").write_text(json.dumps({"licence": "CC-BY-NC-4.0"}))
    assert start_from(path).licence == "CC-BY-NC-4.0"
    path.with_suffix(".json").write_text("no record")
    assert start_from(path).licence is None


def test_without_weights_the_official_ones_are_fetched(state: State, tmp_path: Path) -> None:
    source, demo = WeightsSource(tmp_path, NOWHERE), find_variant(NAME)
    published = replace(demo, download=Download("http://elsewhere/", "micro.pth", CC_BY_NC))
    said: list[str] = []
    with pytest.raises(NoWeights, match="--weights"):
        starting_model(demo, None, ("cat", "dog"), 0.0, source, said.append)
    with pytest.raises(DownloadFailed):
        starting_model(published, None, ("cat", "dog"), 0.0, source, said.append)
    assert said == [f"official weights: {NOWHERE}/micro.pth"]
    torch.save({"model_state": state}, tmp_path / "micro.pth")
    start = starting_model(published, None, ("cat", "dog"), 0.0, source, said.append)
    assert start.licence == "CC-BY-NC-4.0"
    assert torch.equal(start.model.norm.weight, state["norm.weight"])


def test_which_of_several_weights_it_starts_from_is_said(state: State, tmp_path: Path) -> None:
    torch.save({"model": state, "model_ema": state}, tmp_path / "mine.pth")
    said: list[str] = []
    source = WeightsSource(tmp_path / "cache", NOWHERE)
    starting_model(find_variant(NAME), tmp_path / "mine.pth", ("cat", "dog"), 0.0, source, said.append)
    assert any("those of model are taken" in line for line in said)
