"""Four layouts of checkpoints, and what is said of those that do not fit."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import HieraConfig as TransformersConfig
from transformers import HieraForImageClassification

from export.catalog import find_variant
from export.checkpoints import layout_of, read_checkpoint
from export.errors import CheckpointError
from export.hiera import CONFIGS, create_model
from export.package_spec import load_weights

State = dict[str, Tensor]
NAME = "hiera_tiny_224"
MICRO = "hiera_demo_objects"


@pytest.fixture(scope="module")
def state() -> State:
    """Random weights of the tiny variant under the original names."""
    generator = torch.Generator().manual_seed(3)
    with torch.device("meta"):
        empty = create_model(NAME).state_dict()
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in empty.items()}


@pytest.fixture
def micro_state() -> State:
    return {name: tensor.clone() for name, tensor in create_model(MICRO).state_dict().items()}


def in_timm_layout(state: State) -> State:
    """As timm's `checkpoint_filter_fn` names them."""
    changes = {"head.projection.": "head.fc.", "norm.": "head.norm."}
    renamed = {}
    for name, tensor in state.items():
        start = next((start for start in changes if name.startswith(start)), "")
        renamed[changes.get(start, "") + name.removeprefix(start)] = tensor
    return renamed


def in_transformers_layout(state: State) -> State:
    """By way of the library itself: its parameters come in the same order as ours, but for the position embedding."""
    config = TransformersConfig(embed_dim=96, depths=[1, 2, 7, 2], num_heads=[1, 2, 4, 8])
    config.num_labels = 1000
    with torch.device("meta"):
        model = HieraForImageClassification(config)
    theirs = dict(model.state_dict())
    renamed: State = {}
    remaining = dict(state)
    for name, tensor in theirs.items():
        # The first of ours that has the shape and the tail is the one, because both count blocks upwards.
        ours = next(own for own in remaining if remaining[own].shape == tensor.shape and role(own) == role(name))
        renamed[name] = remaining.pop(ours)
    assert not remaining
    return renamed


def role(name: str) -> str:
    """What a parameter is for, in words that both layouts allow."""
    for ours, theirs in (
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("pos_embed", "position_embeddings"),
        ("patch_embed.proj", "patch_embeddings.projection"),
        ("head.projection", "classifier"),
    ):
        if ours in name or theirs in name:
            return ours + name.rpartition(".")[2].removeprefix("position_embeddings").removeprefix("pos_embed")
    if "blocks." not in name and ".layers." not in name:
        return "last norm" + name.rpartition(".")[2]
    return ".".join(name.split(".")[-3:]) if ".attn." in name or ".mlp." in name else ".".join(name.split(".")[-2:])


@pytest.mark.parametrize("layout", ["original pth", "original safetensors", "transformers", "timm", "timm pth", "ddp"])
def test_every_layout_loads_to_equal_weights(layout: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / ("weights.pth" if layout in ("original pth", "timm pth", "ddp") else "model.safetensors")
    match layout:
        case "original pth":
            torch.save({"model_state": state}, path)
        case "original safetensors":
            save_file(state, path)
        case "transformers":
            save_file(in_transformers_layout(state), path)
        case "timm":
            save_file(in_timm_layout(state), path)
        case "timm pth":
            torch.save(in_timm_layout(state), path)
        case "ddp":
            torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    loaded = load_weights(find_variant(NAME), path).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("averaged", ["model_ema", "state_dict_ema"])
def test_which_of_several_weights_are_taken_is_said(micro_state: State, tmp_path: Path, averaged: str) -> None:
    others = {name: tensor + 1 for name, tensor in micro_state.items()}
    said: list[str] = []
    torch.save({averaged: others, "model": micro_state, "epoch": 3}, tmp_path / "mine.pth")
    loaded = load_weights(find_variant(MICRO), tmp_path / "mine.pth", said.append).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in micro_state.items())
    assert len(said) == 1
    assert f"mine.pth holds weights under model and {averaged}: those of model are taken" in said[0]
    # Alone, or beside what are no weights, there is nothing to say.
    for document in ({averaged: others}, {"model_state": others, "model": {"name": MICRO}}):
        torch.save(document, tmp_path / "alone.pth")
        loaded = load_weights(find_variant(MICRO), tmp_path / "alone.pth", said.append).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in others.items())
    assert len(said) == 1


def test_layouts_are_told_apart_by_their_names(state: State) -> None:
    assert layout_of(state) == "original"
    assert layout_of(in_timm_layout(state)) == "timm"
    assert layout_of(in_transformers_layout(state)) == "transformers"
    assert layout_of({"conv1.weight": 0, "fc.weight": 0}) is None


def test_half_precision_weights_are_loaded_as_float32(micro_state: State, tmp_path: Path) -> None:
    save_file({name: tensor.half() for name, tensor in micro_state.items()}, tmp_path / "half.safetensors")
    model = load_weights(find_variant(MICRO), tmp_path / "half.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_head_of_another_size_is_taken_as_it_is(micro_state: State, tmp_path: Path) -> None:
    micro_state["head.projection.weight"] = torch.randn(7, 192)
    micro_state["head.projection.bias"] = torch.randn(7)
    save_file(micro_state, tmp_path / "seven.safetensors")
    assert load_weights(find_variant(MICRO), tmp_path / "seven.safetensors").config.num_classes == 7


def refusal(state: State, tmp_path: Path, name: str = MICRO) -> str:
    path = tmp_path / "own.safetensors"
    save_file(state, path)
    with pytest.raises(CheckpointError) as refused:
        load_weights(find_variant(name), path)
    return str(refused.value)


def test_missing_extra_and_misshapen_parameters_are_all_named(micro_state: State, tmp_path: Path) -> None:
    del micro_state["blocks.0.attn.qkv.bias"]
    micro_state["blocks.9.attn.qkv.bias"] = torch.zeros(3)
    micro_state["norm.weight"] = torch.zeros(5)
    said = refusal(micro_state, tmp_path)
    assert "missing (1): blocks.0.attn.qkv.bias" in said
    assert "extra (1): blocks.9.attn.qkv.bias" in said
    assert "wrong shape (1): norm.weight is 5, not 192" in said


@pytest.mark.parametrize("in_layout", [State, in_transformers_layout, in_timm_layout])
def test_weights_of_another_variant_are_named_as_such(
    in_layout: Callable[[State], State], state: State, tmp_path: Path
) -> None:
    said = refusal(in_layout(state), tmp_path, "hiera_small_224")
    assert "does not fit this variant" in said
    assert "It fits hiera_tiny_224." in said


def test_layers_that_the_variant_lacks_take_no_other_blocks_place(state: State, tmp_path: Path) -> None:
    deeper = in_transformers_layout(state)
    last = "hiera.encoder.stages.2.layers.6."
    for name in [name for name in deeper if name.startswith(last)]:
        for layer in (7, 8):  # where the next stage begins
            deeper[f"hiera.encoder.stages.2.layers.{layer}.{name.removeprefix(last)}"] = deeper[name].clone()
    said = refusal(deeper, tmp_path, NAME)
    assert "extra (24): encoder.stages.2.layers.7.attn.proj.bias" in said
    assert "missing" not in said


@pytest.mark.parametrize(
    ("names", "one"),
    [
        (("patch_embed.proj.weight", "blocks.0.norm1.bias", "norm.weight", "encoder_norm.weight"), "norm.weight"),
        (("patch_embed.proj.weight", "blocks.0.norm1.bias", "norm.weight", "module.norm.weight"), "norm.weight"),
        (("patch_embed.proj.weight", "blocks.0.norm1.bias", "norm.weight", "head.norm.weight"), "norm.weight"),
        (("hiera.pooler.layernorm.bias", "pooler.layernorm.bias"), "norm.bias"),
    ],
)
def test_two_parameters_that_would_get_one_name_are_refused(tmp_path: Path, names: tuple[str, ...], one: str) -> None:
    path = tmp_path / "twice.pth"
    torch.save({name: torch.zeros(1) for name in names}, path)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path, CONFIGS[MICRO])
    assert str(refused.value) == f"{path}: two parameters would get one name, {one}: {names[-2]} and {names[-1]}"


@pytest.mark.parametrize("with_head", [False, True])
def test_masked_pretraining_is_refused_in_plain_words(micro_state: State, tmp_path: Path, with_head: bool) -> None:
    micro_state["encoder_norm.weight"] = micro_state.pop("norm.weight")
    micro_state["encoder_norm.bias"] = micro_state.pop("norm.bias")
    micro_state["mask_token"] = torch.zeros(1, 1, 8)
    micro_state["decoder_embed.weight"] = torch.zeros(8, 8)
    if not with_head:
        del micro_state["head.projection.weight"], micro_state["head.projection.bias"]
    assert "masked pretraining (MAE)" in refusal(micro_state, tmp_path)


def test_the_norm_of_masked_pretraining_gets_its_usual_name(micro_state: State, tmp_path: Path) -> None:
    micro_state["encoder_norm.weight"] = micro_state.pop("norm.weight")
    save_file(micro_state, tmp_path / "mae.safetensors")
    checkpoint = read_checkpoint(tmp_path / "mae.safetensors", CONFIGS[MICRO])
    assert "norm.weight" in checkpoint.state
    assert checkpoint.pretraining_only


def test_weights_that_are_not_numbers_are_refused(micro_state: State, tmp_path: Path) -> None:
    micro_state["norm.bias"][3] = float("nan")
    assert "not a number, or infinite: norm.bias" in refusal(micro_state, tmp_path)


def test_weights_too_large_for_float32_are_refused(micro_state: State, tmp_path: Path) -> None:
    micro_state["norm.weight"] = micro_state["norm.weight"].double() * 1e300
    assert "not a number, or infinite: norm.weight" in refusal(micro_state, tmp_path)


def test_weights_in_eight_bits_are_loaded_as_float32(micro_state: State, tmp_path: Path) -> None:
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in micro_state.items()}
    save_file(small, tmp_path / "small.safetensors")
    loaded = load_weights(find_variant(MICRO), tmp_path / "small.safetensors").state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in small.items())


def test_a_head_that_is_a_single_number_has_the_wrong_shape(micro_state: State, tmp_path: Path) -> None:
    micro_state["head.projection.weight"] = torch.zeros(())
    assert "head.projection.weight is a scalar, not 10x192" in refusal(micro_state, tmp_path)


def test_another_architecture_is_refused_with_its_first_names(tmp_path: Path) -> None:
    said = refusal({"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}, tmp_path)
    assert "not a Hiera checkpoint" in said
    assert "conv1.weight, fc.weight" in said


class Payload:
    """What an attacker hides in a checkpoint: unpickling it would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_checkpoint_is_not_run(micro_state: State, tmp_path: Path) -> None:
    torch.save({"model_state": micro_state, "hook": Payload(tmp_path / "proof")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="its code will not be run"):
        read_checkpoint(tmp_path / "evil.pth", CONFIGS[MICRO])
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_file_that_is_cut_short_is_said_to_be(micro_state: State, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save({"model_state": micro_state}, path)
    else:
        save_file(micro_state, path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="cut short"):
        read_checkpoint(path, CONFIGS[MICRO])


@pytest.mark.parametrize("length", [1, 10, 30, 1000])
def test_a_bare_pickle_that_is_cut_short_is_said_to_be(micro_state: State, tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.pth"
    torch.save(micro_state, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="cut short"):
        read_checkpoint(path, CONFIGS[MICRO])


SAFETENSORS = b"\x80\0\0\0\0\0\0\0{"  # a length whose first byte looks like a pickle's


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("login.pth", b"<!DOCTYPE html>", "no weights file, it starts with b'<!DOCTYPE ht'"),
        ("login.safetensors", b"<!DOCTYPE html>", "no weights file, it starts with b'<!DOCTYPE ht'"),
        ("none.pth", b"", "the file is empty"),
        ("none.safetensors", b"", "the file is empty"),
        ("misnamed.pth", SAFETENSORS, "its name must end in .safetensors"),
        ("misnamed.safetensors", b"PK\x03\x04", "its name must end in .pth"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_told_so(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(tmp_path / name, CONFIGS[MICRO])
    assert words in str(refused.value)


def test_an_ending_may_be_in_capitals(micro_state: State, tmp_path: Path) -> None:
    save_file(micro_state, tmp_path / "MODEL.SAFETENSORS")
    assert read_checkpoint(tmp_path / "MODEL.SAFETENSORS", CONFIGS[MICRO]).state.keys() == micro_state.keys()


@pytest.mark.parametrize(
    ("content", "words"), [({}, "no state dict"), ({"model": {"epoch": 3}}, "epoch are no tensors")]
)
def test_a_file_without_weights_is_said_to_be_so(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(tmp_path / "empty.pth", CONFIGS[MICRO])


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "absent.pth", CONFIGS[MICRO])
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path, CONFIGS[MICRO])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_what_wrappers_put_before_every_name_is_left_out(micro_state: State, tmp_path: Path, prefix: str) -> None:
    wrapped = {prefix + name: tensor for name, tensor in micro_state.items()}
    torch.save({"state_dict": wrapped}, tmp_path / "mine.pth")
    assert read_checkpoint(tmp_path / "mine.pth", CONFIGS[MICRO]).state.keys() == micro_state.keys()


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize(
    "form",
    [Tensor.to_sparse, Tensor.to_sparse_csr, lambda x: x.to(torch.complex64), lambda x: x.to("meta")],
    ids=["sparse", "csr", "complex", "meta"],
)
def test_tensors_that_are_no_plain_numbers_are_refused(
    micro_state: State, tmp_path: Path, form: Callable[[Tensor], Tensor]
) -> None:
    micro_state["head.projection.weight"] = form(micro_state["head.projection.weight"])
    torch.save(micro_state, tmp_path / "mine.pth")
    with pytest.raises(CheckpointError, match=r"head\.projection\.weight; save them as plain tensors"):
        load_weights(find_variant(MICRO), tmp_path / "mine.pth")


def test_weights_that_changed_on_the_way_are_refused(micro_state: State, tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(micro_state, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged, the checksum of .* is another"):
        load_weights(find_variant(MICRO), path)


def test_a_torchscript_program_is_told_as_such(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "mine.pth", "w") as file:  # as torch.jit.save lays it out
        file.writestr("mine/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="a TorchScript program; save the state dict"):
        load_weights(find_variant(MICRO), tmp_path / "mine.pth")
