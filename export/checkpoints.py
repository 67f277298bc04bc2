"""Reads Hiera checkpoints of four layouts into the original parameter names, without unpickling code.

    original .pth          {"model_state": {...}}, names as in `export.hiera`
    original safetensors   the same names without the envelope
    transformers           `hiera.encoder.stages.S.layers.L…`, `classifier`
    timm                   `head.fc`, `head.norm`, the rest as in the original

The file's ending decides how bytes are read; the names alone decide the layout.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from export.errors import CheckpointError
from export.formats import is_safetensors, wrong_start
from export.hiera import CONFIGS, Hiera, HieraConfig, create_model

Layout = Literal["original", "transformers", "timm"]
State = dict[str, Tensor]

HEAD = "head.projection.weight"
# How names begin that only masked pretraining has beside the encoder, in the three layouts.
DECODER = ("decoder", "mask_token", "multi_scale_fusion", "multiscale_fusion")
_SHOWN_NAMES = 8
# What training scripts put state dicts under: the weights themselves, and running averages of them.
_ENVELOPES = ("model_state", "state_dict", "model", "model_ema", "state_dict_ema")
# What wrappers put before every name: DataParallel, torch.compile, Lightning.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|model\.)+")


@dataclass(frozen=True)
class Checkpoint:
    """Weights under the original names. `pretraining_only` means that no classifier was trained on them.

    `stored` are the same under the file's own names: what the original ones are depends on the variant. `note` says
    which weights were taken of a file that holds several.
    """

    state: State
    layout: Layout
    pretraining_only: bool
    stored: State
    note: str | None = None

    @property
    def num_classes(self) -> int | None:
        """Classes of the head, or None without one, or with a single number in its place."""
        head = self.state.get(HEAD)
        return len(head) if head is not None and head.ndim else None


def read_checkpoint(path: Path, config: HieraConfig) -> Checkpoint:
    """Read a checkpoint and give its parameters the original names.

    Args:
        path: a .safetensors file, or one that torch.save wrote.
        config: the variant that the weights are for; it says where the stages of the transformers layout start.

    Raises:
        CheckpointError: unreadable, with code inside, of none of the four layouts, or with two names for one parameter.
    """
    stored, note = _read_tensors(path)
    layout = layout_of(stored)
    if layout is None:
        raise CheckpointError(
            f"{path}: not a Hiera checkpoint of a known layout (original, transformers, timm); its first names are "
            f"{_names(sorted(stored))}"
        )
    state = _original_names(stored, layout, config, str(path))
    return Checkpoint(state, layout, _is_pretraining_only(stored), stored, note)


def layout_of(names: Iterable[str]) -> Layout | None:
    """Tell the layout from the parameter names, None if it is not Hiera's."""
    present = set(names)
    if any(name.startswith(("hiera.", "encoder.stages.")) for name in present):
        return "transformers"
    if "patch_embed.proj.weight" not in present or not any(name.startswith("blocks.") for name in present):
        return None
    timm_marks = ("head.fc.weight", "head.norm.weight", "pos_embed_abs", "pos_embed_win")
    return "timm" if any(mark in present for mark in timm_marks) and HEAD not in present else "original"


def input_size_of(state: State, config: HieraConfig) -> tuple[int, ...]:
    """The input that weights are for, (height, width) or (frames, height, width), by the tokens that their position
    embeddings have: squares of other sizes than the variant's, and clips of other lengths, are told so.

    The variant's own where they do not tell: without such parameters, with tokens that its mask units do not divide,
    and for abswin's, which are stretched to any input.
    """
    if config.window_pos_embed_size is not None:
        return config.input_size
    names = ("pos_embed_temporal", "pos_embed_spatial") if config.is_video else ("pos_embed",)
    embeddings = [state[name] for name in names if name in state and state[name].ndim == 3]
    if len(embeddings) < len(names):
        return config.input_size
    *frames, in_picture = (embedding.shape[1] for embedding in embeddings)
    side = math.isqrt(in_picture)
    grid = (*frames, side, side)
    if side * side != in_picture or any(
        tokens % unit for tokens, unit in zip(grid, config.mask_unit_size, strict=True)
    ):
        return config.input_size
    return tuple(tokens * stride for tokens, stride in zip(grid, config.patch_stride, strict=True))


def load_classifier(model: Hiera, checkpoint: Checkpoint, source: str) -> None:
    """Load a classifier's weights; every parameter must be there, nothing else, each of its own shape.

    Args:
        model: filled in place; its head has as many classes as the checkpoint's.
        source: what the checkpoint is called in messages.

    Raises:
        CheckpointError: masked pretraining only, or with missing, extra or misshapen parameters, all of them listed.
    """
    if HEAD not in checkpoint.state or checkpoint.pretraining_only:
        raise CheckpointError(
            f"{source}: these are weights of masked pretraining (MAE) or of a backbone alone: nothing in them was "
            "trained to tell classes apart. Use the fine-tuned file (its name does not start with mae_), or fine-tune."
        )
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - checkpoint.state.keys())
    extra = sorted(checkpoint.state.keys() - wanted.keys())
    misshapen = [
        f"{name} is {_shape(checkpoint.state[name])}, not {_shape(tensor)}"
        for name, tensor in wanted.items()
        if name in checkpoint.state and checkpoint.state[name].shape != tensor.shape
    ]
    if missing or extra or misshapen:
        faults = [
            *([f"  missing ({len(missing)}): {_names(missing)}"] if missing else []),
            *([f"  extra ({len(extra)}): {_names(extra)}"] if extra else []),
            *([f"  of the wrong shape ({len(misshapen)}): {_names(misshapen)}"] if misshapen else []),
        ]
        suggestion = _suggestion(checkpoint, source)
        raise CheckpointError("\n".join([f"{source} does not fit this variant:", *faults, *suggestion]))
    # Before it is looked at: not every type can be (float8), and what is finite in float64 may not be here.
    state = {name: tensor.to(torch.float32) for name, tensor in checkpoint.state.items()}
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(f"{source}: not a number, or infinite: {_names(broken)}")
    # Assigned, not copied, so that the model may have been made on the meta device, without drawing weights in vain.
    model.load_state_dict(state, assign=True)


def _read_tensors(path: Path) -> tuple[State, str | None]:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: pass the file in it that holds the weights")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        fault = wrong_start(path, path.name)
        if fault is not None:
            raise CheckpointError(f"{path}: {fault}")
        if is_safetensors(path.name):
            document: object = load_file(path)
        else:
            _refuse_damaged(path)
            document = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, and its code will not be run; "
            "save just the state dict, best as safetensors"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, struct.error, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint, it may be cut short ({error})") from error
    note = None
    held = [name for name in _ENVELOPES if isinstance(document, dict) and isinstance(document.get(name), dict)]
    if held and isinstance(document, dict):
        others = [name for name in held[1:] if any(isinstance(value, Tensor) for value in document[name].values())]
        if others:
            note = (
                f"{path.name} holds weights under {held[0]} and {' and '.join(others)}: those of {held[0]} are taken; "
                "to have others, save them alone"
            )
        document = document[held[0]]
    if not isinstance(document, dict) or not document:
        raise CheckpointError(f"{path}: holds no state dict")
    wrong = [
        str(name) for name, value in document.items() if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if wrong:
        raise CheckpointError(f"{path}: not a plain state dict: {_names(wrong)} are no tensors")
    odd = [name for name, tensor in document.items() if not _is_plain(tensor)]
    if odd:
        raise CheckpointError(
            f"{path}: sparse, quantized, complex or without values: {_names(odd)}; save them as plain tensors"
        )
    return _renamed(document, lambda name: _WRAPPERS.sub("", name), str(path)), note


def _refuse_damaged(path: Path) -> None:
    """Raises CheckpointError for a zip file that torch.load would take, though a part of it is not what was written."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        if any(name.endswith("/constants.pkl") for name in file.namelist()):
            raise CheckpointError(f"{path}: a TorchScript program; save the state dict of the model instead")
        try:
            damaged = file.testzip()
        except (zipfile.BadZipFile, NotImplementedError, zlib.error) as error:
            raise CheckpointError(f"{path}: damaged ({error})") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged, the checksum of {damaged} is another: fetch or save it again")


def _is_plain(tensor: Tensor) -> bool:
    odd = tensor.is_quantized or tensor.is_meta or tensor.is_nested or tensor.is_complex()
    return tensor.layout is torch.strided and not odd


def _renamed(state: State, new_name: Callable[[str], str], source: str) -> State:
    """Raises CheckpointError where a parameter would take another one's place."""
    before: dict[str, str] = {}
    for name in state:
        other = before.setdefault(new_name(name), name)
        if other != name:
            raise CheckpointError(f"{source}: two parameters would get one name, {new_name(name)}: {other} and {name}")
    return {new: state[name] for new, name in before.items()}


def _is_pretraining_only(state: State) -> bool:
    has_head = any(name in state for name in (HEAD, "head.fc.weight", "classifier.weight"))
    return not has_head or any(name.startswith((*DECODER, "encoder_norm.")) for name in state)


def _original_names(stored: State, layout: Layout, config: HieraConfig, source: str) -> State:
    if layout == "transformers":
        stored = _from_transformers(stored, config, source)
    elif layout == "timm":
        stored = _from_timm(stored, source)
    # In files of masked pretraining the last norm is called `encoder_norm`.
    return _renamed(stored, lambda name: re.sub(r"^encoder_norm\.", "norm.", name), source)


def _from_timm(state: State, source: str) -> State:
    def original(name: str) -> str:
        name = re.sub(r"^head\.fc\.", "head.projection.", name)
        name = re.sub(r"^head\.norm\.", "norm.", name)
        return "pos_embed" if name == "pos_embed_abs" else name

    return _renamed(state, original, source)


def _from_transformers(state: State, config: HieraConfig, source: str) -> State:
    """Rename; block i is the stage's first block plus the layer. Layers that the variant lacks keep their names."""
    starts = [sum(config.stages[:stage]) for stage in range(len(config.stages))]
    plain = {
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "pooler.layernorm.weight": "norm.weight",
        "pooler.layernorm.bias": "norm.bias",
        "classifier.weight": "head.projection.weight",
        "classifier.bias": "head.projection.bias",
    }

    def original(name: str) -> str:
        name = name.removeprefix("hiera.")
        layer = re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)", name)
        # One layer more than the stage has would take the place of the next stage's first.
        if layer is None or int(layer[1]) >= len(starts) or int(layer[2]) >= config.stages[int(layer[1])]:
            return plain.get(name, name)
        tail = layer[3].replace("layernorm_before.", "norm1.").replace("layernorm_after.", "norm2.")
        return f"blocks.{starts[int(layer[1])] + int(layer[2])}.{tail}"

    return _renamed(state, original, source)


def _suggestion(checkpoint: Checkpoint, source: str) -> list[str]:
    """Name the variants whose body has the checkpoint's shapes, when another one has."""
    fitting = []
    for name, config in CONFIGS.items():
        state = _original_names(checkpoint.stored, checkpoint.layout, config, source)
        shapes = {name: tensor.shape for name, tensor in state.items()}
        with torch.device("meta"):
            candidate = create_model(name, checkpoint.num_classes, input_size=input_size_of(state, config))
        if {key: value.shape for key, value in candidate.state_dict().items()} == shapes:
            fitting.append(name)
    return [f"  It fits {' and '.join(fitting)}."] if fitting else []


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN_NAMES])
    return shown + (f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else "")
