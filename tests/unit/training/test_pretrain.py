"""Pretraining reads what is in a folder, learns from it, and goes on where it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from export.catalog import find_variant
from export.hiera import CONFIGS, Hiera, HieraConfig
from training import pretrain
from training.clips import FRAMES
from training.loop import cosine_factor
from training.mae import DecoderConfig, MaskedAutoencoder, load_pretrained
from training.pictures import Pictures, find_files
from training.pretrain import make_optimiser, parse
from training.sound_files import LeftOut
from training.video_files import encode_h264

DEMO = find_variant("hiera_demo_objects")
SMALL_DECODER = ["--decoder-dim", "32", "--decoder-depth", "1", "--decoder-heads", "4"]


def paint(folder: Path, count: int) -> Path:
    """Pictures of coloured slopes, in two folders and three formats, beside a file that is none."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / ("a" if index % 2 else "b") / f"{index:03d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        slope = np.linspace(rng.integers(0, 256, 3), rng.integers(0, 256, 3), 48)
        pixels = np.broadcast_to(slope, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path, ("JPEG", "PNG", "WEBP")[index % 3])
    (folder / "notes.jpg").write_text("no picture, whatever its name says")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("pictures"), 34)


def pretrained(folder: Path, output: Path, *more: str) -> dict[str, Any]:
    where = ["--data", str(folder), "--output", str(output)]
    pretrain.main(["hiera_demo_objects", *where, "--batch", "8", "--device", "cpu", *SMALL_DECODER, *more])
    record: dict[str, Any] = json.loads(output.with_suffix(".json").read_text())
    return record


def test_files_are_found_by_their_first_bytes(folder: Path) -> None:
    found = find_files(folder, "image", LeftOut())
    assert len(found) == 34
    assert found == sorted(found)
    assert find_files(folder, "video", LeftOut()) == []


def test_the_loss_falls_and_the_weights_load_again(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "mae.safetensors"
    record = pretrained(folder, output, "--epochs", "6", "--rate", "0.3")
    assert record["losses"][-1] < 0.8 * record["losses"][0]
    assert record["held_out"]["files"] == 1
    assert record["data"] == "33 image files, without labels"
    assert (record["steps"], record["mask_ratio"], record["learning_rate"]) == (24, 0.625, 0.3 * 8 / 256)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mae.json", "mae.safetensors"]
    model = MaskedAutoencoder(CONFIGS["hiera_demo_objects"], DecoderConfig(32, 1, 4))
    load_pretrained(model, output)
    encoder = set(Hiera(model.config).state_dict()) - {"head.projection.weight", "head.projection.bias"}
    assert {name.replace("encoder_norm.", "norm.") for name in load_file(output)} >= encoder


def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halves = tmp_path / "whole.safetensors", tmp_path / "halves.safetensors"
    expected = pretrained(folder, whole, "--epochs", "3")
    measure, measured = pretrain.measure, 0

    def interrupted(*arguments: Any) -> dict[str, float]:
        nonlocal measured
        measured += 1
        if measured == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(pretrain, "measure", interrupted)
    with pytest.raises(SystemExit, match="the same command goes on"):
        pretrained(folder, halves, "--epochs", "3")
    assert halves.with_suffix(".resume").exists()
    record = pretrained(folder, halves, "--epochs", "3")
    assert record["losses"] == expected["losses"]
    state = load_file(halves)
    assert all(torch.equal(value, state[name]) for name, value in load_file(whole).items())


def test_the_rest_of_another_run_is_not_taken_up(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "mae.safetensors"
    settings = {"seed": 7}
    model = MaskedAutoencoder(CONFIGS["hiera_demo_objects"], DecoderConfig(32, 1, 4))
    pretrain.Resume(output, settings).save(model, make_optimiser(model, 1e-3), [1.0], 1.0)
    with pytest.raises(SystemExit, match=r"mae\.resume is of a run with other settings"):
        pretrained(folder, output, "--epochs", "1")


def test_a_run_starts_from_the_weights_that_it_is_given(folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    pretrained(folder, first, "--epochs", "1")
    record = pretrained(folder, second, "--epochs", "2", "--rate", "1e-12", "--initial", str(first))
    assert [run["steps"] for run in record["earlier_runs"]] == [4]
    assert record["losses"][0] != record["losses"][1]  # the same weights, other crops and masks
    state = load_file(second)
    assert all(torch.allclose(value, state[name], atol=1e-6) for name, value in load_file(first).items())


@pytest.mark.parametrize("content", [b"", b"notes", None])
def test_the_rest_of_a_run_that_is_damaged_is_named(folder: Path, tmp_path: Path, content: bytes | None) -> None:
    output = tmp_path / "mae.safetensors"
    if content is None:
        torch.save({"losses": []}, output.with_suffix(".resume"))
    else:
        output.with_suffix(".resume").write_bytes(content)
    with pytest.raises(SystemExit, match=r"mae\.resume cannot be gone on from .*remove it to begin anew"):
        pretrained(folder, output, "--epochs", "1")


def test_a_run_that_diverges_ends_and_leaves_what_was_learnt_before(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "mae.safetensors"
    with pytest.raises(SystemExit, match="no number any more, from step 4 on: try a lower --rate"):
        pretrained(folder, output, "--epochs", "1", "--rate", "1e30")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "must be 1 or more"),
        (["--batch", "0"], "must be 1 or more"),
        (["--rate", "0"], "must be 1e-12 or more"),
        (["--rate", "inf"], "must be 1e-12 or more"),
        (["--decoder-heads", "5"], "--decoder-dim 32 is no multiple of --decoder-heads 5"),
        (["--decoder-depth", "-1"], "must be 1 or more"),
        (["--device", "gpu"], "must be auto, cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "this torch finds"),
        (["--threads", "0"], "must be 1 or more"),
        (["--seed", "-1"], "must be a whole number from 0"),
        (["--output", "mae.resume"], "must end in .safetensors"),
    ],
)
def test_wrong_settings_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        pretrained(folder, tmp_path / "mae.safetensors", *arguments)
    assert message in capsys.readouterr().err


def test_too_few_files_and_a_missing_folder_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="34 image files are too few for a batch of 64"):
        pretrained(folder, tmp_path / "mae.safetensors", "--batch", "64")
    with pytest.raises(SystemExit, match="nowhere: no such folder"):
        pretrained(tmp_path / "nowhere", tmp_path / "mae.safetensors")


def test_crops_differ_by_seed_and_keep_their_size(folder: Path) -> None:
    pictures = Pictures(find_files(folder, "image", LeftOut()), DEMO)
    first, again, other = (pictures.random_crops(3, 0.2, seed) for seed in (1, 1, 2))
    assert first.shape == (1, 1, 3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    centre = pictures.centre(3)
    assert centre is not None
    assert torch.equal(centre, pictures.read(3))  # the demo's short side is its input's


def test_an_epoch_shows_every_file_once_in_an_order_of_its_own(folder: Path) -> None:
    pictures = Pictures(find_files(folder, "image", LeftOut())[:12], DEMO)
    shown: list[int] = []
    pictures.random_crops = lambda index, smallest, seed: torch.tensor([index])  # type: ignore[method-assign]
    orders = []
    for seed in (1, 2):
        shown = torch.cat(list(pictures.epoch(4, 0.2, seed, workers=2))).tolist()
        assert sorted(shown) == list(range(12))
        orders.append(shown)
    assert orders[0] != orders[1]


def test_some_crops_are_mirror_images(tmp_path: Path) -> None:
    half = np.zeros((32, 32, 3), dtype=np.uint8)
    half[:, 16:] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    pictures = Pictures([tmp_path / "half.png"], DEMO)
    crops = torch.cat([pictures.random_crops(0, 0.9, seed) for seed in range(20)]).float()
    right_is_brighter = crops[..., 16:].mean(dim=(1, 2, 3, 4)) > crops[..., :16].mean(dim=(1, 2, 3, 4))
    assert 0 < int(right_is_brighter.sum()) < 20


def test_files_are_decoded_once_if_they_fit_in_memory(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(find_files(folder, "image", LeftOut())[0].read_bytes())
    kept, decoded = Pictures([copy], DEMO), Pictures([copy], DEMO, memory_bytes=0)
    assert torch.equal(kept.read(0), decoded.read(0))
    copy.unlink()
    assert kept.read(0).any()
    with pytest.raises(FileNotFoundError):
        decoded.read(0)


def test_the_clips_of_a_video_are_spread_over_it(tmp_path: Path) -> None:
    brighter = torch.linspace(20, 230, 120).byte().view(-1, 1, 1, 1).expand(-1, 64, 64, 3)
    (tmp_path / "dawn.mp4").write_bytes(encode_h264(brighter, 24, crf=18))
    pictures = Pictures([tmp_path / "dawn.mp4"], find_variant("hiera_demo_camera_motion"), clips=4)
    crops = pictures.random_crops(0, 0.5, seed=1).float()
    moments = crops.mean(dim=(1, 2, 3, 4))
    assert moments.tolist() == sorted(set(moments.tolist()))
    assert bool((crops[:, 1:].mean(dim=(2, 3, 4)) >= crops[:, :-1].mean(dim=(2, 3, 4))).all())


def test_pixels_are_normalised_colour_by_colour_and_time_stands_behind_colour() -> None:
    pixels = torch.randint(0, 256, (2, 16, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip = pretrain.Normalise(find_variant("hiera_demo_camera_motion"), torch.device("cpu"))(pixels)
    torch.testing.assert_close(clip[1, 2, 5], (pixels[1, 5, 2] / 255 - 0.45) / 0.225)
    image = pretrain.Normalise(DEMO, torch.device("cpu"))(pixels[:, :1, :, :32, :32])
    torch.testing.assert_close(image[1, 2], (pixels[1, 0, 2, :32, :32] / 255 - 0.406) / 0.225)


def test_videos_give_clips_whose_frames_are_cropped_alike(tmp_path: Path) -> None:
    still = torch.randint(0, 256, (1, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for index in range(3):
        (tmp_path / f"{index}.mp4").write_bytes(encode_h264(still.expand(40, -1, -1, -1), 24, crf=18))
    variant = find_variant("hiera_demo_camera_motion")
    crops = Pictures(find_files(tmp_path, "video", LeftOut()), variant, clips=4).random_crops(0, 0.5, seed=1)
    assert crops.shape == (4, FRAMES, 3, 64, 64)
    assert (crops[0].float() - crops[0, :1].float()).abs().mean() < 4.0  # a codec's noise
    assert (crops[0].float() - crops[1].float()).abs().mean() > 20.0
    arguments = ["hiera_demo_camera_motion", "--data", str(tmp_path), "--output", str(tmp_path / "mae.safetensors")]
    record = pretrain.run(parse([*arguments, "--batch", "8", "--epochs", "1", "--device", "cpu", *SMALL_DECODER]))
    assert (record["steps"], record["mask_ratio"]) == (1, round(1 - 3 / 32, 4))


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    assert [cosine_factor(step, 100, 20.0) for step in (0, 9, 19, 20)] == [0.05, 0.5, 1.0, 1.0]
    assert cosine_factor(60, 100, 20.0) == pytest.approx(0.5)
    assert cosine_factor(99, 100, 20.0) < 1e-3


def test_the_paper_s_settings_stand_in_for_what_is_not_given() -> None:
    image, video = (
        parse([name, "--data", ".", "--output", "mae.safetensors"]) for name in ("hiera_base_224", "hiera_base_16x224")
    )
    assert (image.rate * 4096 / 256, image.epochs) == (pytest.approx(8e-4), 400)
    assert (video.rate * 512 / 256, video.epochs) == (pytest.approx(8e-4), 800)


def test_vectors_and_position_embeddings_do_not_decay() -> None:
    model = MaskedAutoencoder(HieraConfig(16, 1, (1, 1), 4, (64, 64)), DecoderConfig(32, 1, 4), 0.5)
    decayed, plain = make_optimiser(model, 1e-3).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"], decayed["betas"]) == (0.05, 0.0, (0.9, 0.95))
    assert {"patch_embed.proj.weight", "decoder_pred.weight"} <= {names[id(p)] for p in decayed["params"]}
    undecayed = {names[id(p)] for p in plain["params"]}
    assert {"pos_embed", "decoder_pos_embed", "mask_token", "encoder_norm.weight", "decoder_pred.bias"} <= undecayed
    assert len(decayed["params"]) + len(undecayed) == len(names)
