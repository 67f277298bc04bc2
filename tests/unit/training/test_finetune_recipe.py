"""Learning rates by layer, the schedule, and mixed pictures, each against what one reckons by hand."""

from __future__ import annotations

import pytest
import torch

from export.hiera import create_model
from training.recipe import Mixing, cosine, parameter_groups, recipe_of, scaled_rate


@pytest.mark.parametrize(
    ("name", "blocks", "embeddings"),
    [
        ("hiera_demo_objects", 6, ["pos_embed"]),
        ("hiera_demo_camera_motion", 5, ["pos_embed_spatial", "pos_embed_temporal"]),
    ],
)
def test_the_rate_halves_with_each_layer_and_only_matrices_decay(name: str, blocks: int, embeddings: list[str]) -> None:
    model = create_model(name)
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        by_id[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, rate=64.0, layer_decay=0.5)
        for parameter in group["params"]
    }
    assert found.keys() == set(by_id.values())
    lowest = {6: 0.5, 5: 1.0}[blocks]  # 64 / 2 ** 7, 64 / 2 ** 6
    assert found["patch_embed.proj.weight"] == (lowest, 0.05)
    assert found["patch_embed.proj.bias"] == (lowest, 0.0)
    for embedding in embeddings:
        assert found[embedding] == (lowest, 0.0)
    assert found["blocks.0.attn.qkv.weight"] == (2 * lowest, 0.05)
    assert found["blocks.1.proj.weight"] == (4 * lowest, 0.05)
    assert found["blocks.2.norm1.weight"] == (8 * lowest, 0.0)
    assert found[f"blocks.{blocks - 1}.mlp.fc2.weight"] == (32.0, 0.05)
    assert found["norm.weight"] == (64.0, 0.0)
    assert found["head.projection.weight"] == (64.0, 0.05)
    assert found["head.projection.bias"] == (64.0, 0.0)


def test_one_layer_decay_of_one_is_one_rate() -> None:
    groups = parameter_groups(create_model("hiera_demo_objects"), 0.1, 1.0)
    assert {group["lr"] for group in groups} == {0.1}


def test_layer_scale_does_not_decay() -> None:
    with torch.device("meta"):
        model = create_model("hiera_small_abswin_256")
    decaying = [
        parameter.ndim
        for group in parameter_groups(model, 1.0, 0.9)
        if group["weight_decay"]
        for parameter in group["params"]
    ]
    assert min(decaying) == 2
    assert len(decaying) == sum(p.ndim > 1 for p in model.parameters()) - 2  # pos_embed, pos_embed_win


def test_the_rate_rises_for_a_tenth_and_falls_along_a_cosine() -> None:
    factor = cosine(100)
    assert [factor(step, step / 100) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert factor(55, 0.55) == pytest.approx(0.5)
    assert factor(99, 0.99) < 0.001
    assert cosine(1)(0, 0.0) == 1.0


def test_rates_follow_size_and_batch() -> None:
    assert (recipe_of(51_524_968, 100).layer_decay, recipe_of(213_739_912, 100).layer_decay) == (0.65, 0.75)
    assert recipe_of(672_779_752, 100).drop_path == 0.3
    assert (recipe_of(1, 9_999).mixup, recipe_of(1, 10_000).mixup) == (0.0, 0.8)
    assert scaled_rate(1e-3, 64) == pytest.approx(2.5e-4)


def test_without_mixing_labels_stay_whole() -> None:
    inputs, targets = Mixing(3, 0.0, 0.0, 0)(torch.ones(2, 3, 4, 4), torch.tensor([2, 0]))
    assert targets.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert bool((inputs == 1).all())


@pytest.mark.parametrize("shape", [(3, 20, 30), (3, 2, 20, 30)], ids=["images", "clips"])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_labels_are_mixed_as_the_pixels_are(shape: tuple[int, ...], mixup: float, cutmix: float) -> None:
    """The pictures' own value is their class, so that the mean pixel tells what their labels should be."""
    mix = Mixing(2, mixup, cutmix, seed=0)
    inputs = torch.stack([torch.zeros(shape), torch.ones(shape)])
    parts = []
    for _ in range(40):
        mixed, targets = mix(inputs, torch.tensor([0, 1]))
        torch.testing.assert_close(mixed.flatten(1).mean(dim=1), targets[:, 1], rtol=0, atol=1e-5)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(2))
        assert bool(((mixed == 0) | (mixed == 1)).all()) is (cutmix > 0)
        parts.append(float(targets[0, 0]))
    assert min(parts) < 0.3
    assert max(parts) > 0.7
    assert float(inputs.sum()) == inputs[1].numel()


def test_either_kind_of_mixing_has_its_turn() -> None:
    mix = Mixing(2, 0.8, 1.0, seed=0)
    inputs = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    cut = [bool(((x == 0) | (x == 1)).all()) for x in (mix(inputs, torch.tensor([0, 1]))[0] for _ in range(40))]
    assert 8 < sum(cut) < 32
