"""What the catalog says of each variant, against the model itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from export.catalog import IMAGENET, KINETICS, VARIANTS, LabelSet, Variant, find_variant, read_label_set
from export.errors import UnknownVariant, WrongLabels
from export.hiera import CONFIGS, create_model

every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)


def test_the_catalog_and_the_model_know_the_same_variants() -> None:
    assert VARIANTS.keys() == CONFIGS.keys()


@every_variant
def test_size_and_cost_are_those_of_the_model(variant: Variant) -> None:
    with torch.device("meta"):
        model = create_model(variant.name)
        x = torch.empty(1, 3, *model.config.input_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert sum(parameter.numel() for parameter in model.parameters()) == variant.parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(variant.gmacs, rel=0.01)


@every_variant
def test_geometry_is_that_of_the_model(variant: Variant) -> None:
    config = CONFIGS[variant.name]
    crop = variant.preprocessing
    assert config.input_size[-2:] == (crop.height, crop.width)
    assert crop.resize_short_side >= crop.height
    assert (variant.task == "video") == config.is_video == (variant.sampling is not None)
    if variant.sampling is not None:
        assert variant.sampling.frames == config.input_size[0]


@every_variant
def test_there_is_a_label_for_each_class(variant: Variant) -> None:
    labels = read_label_set(variant.labels)
    assert len(labels) == variant.num_classes == CONFIGS[variant.name].num_classes
    assert len(set(labels)) == len(labels)
    assert all(label and label == label.strip() for label in labels)


def test_known_classes_stand_at_their_published_places() -> None:
    assert read_label_set(IMAGENET)[207] == "golden retriever"
    kinetics = read_label_set(KINETICS)
    assert (kinetics[125], kinetics[363]) == ("feeding goats", "training dog")
    assert list(kinetics) == sorted(kinetics)


def test_a_changed_label_list_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "labels.txt"
    copy.write_text(IMAGENET.path.read_text().replace("golden retriever", "golden delicious"))
    with pytest.raises(WrongLabels, match="was changed"):
        read_label_set(replace(IMAGENET, path=copy))
    assert len(read_label_set(LabelSet("any", copy))) == 1000


def test_preprocessing_is_as_evaluated() -> None:
    image, video = find_variant("hiera_base_224"), find_variant("hiera_base_16x224")
    assert (image.preprocessing.resize_short_side, image.preprocessing.interpolation) == (256, "bicubic")
    assert (video.preprocessing.resize_short_side, video.preprocessing.interpolation) == (256, "bilinear")
    assert (video.preprocessing.mean, video.preprocessing.std) == ((0.45,) * 3, (0.225,) * 3)
    assert video.sampling is not None
    assert (video.sampling.stride, video.sampling.target_fps) == (4, 30.0)
    abswin = find_variant("hiera_small_abswin_256").preprocessing
    assert abswin.resize_short_side == int(256 / 0.95)  # as timm resizes: to int(size / crop_pct)
    assert abswin.interpolation == "bicubic"
    for imagenet in (image.preprocessing, abswin):
        assert (imagenet.mean, imagenet.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@every_variant
def test_official_weights_are_looked_for_where_they_are_published(variant: Variant) -> None:
    if variant.demo:
        assert variant.download is None
        return
    assert variant.download is not None
    if variant.name == "hiera_small_abswin_256":
        published = "https://huggingface.co/timm/hiera_small_abswin_256.sbb2_e200_in12k_ft_in1k/resolve/main/"
        assert variant.download.url == f"{published}model.safetensors"
        assert variant.download.file == "hiera_small_abswin_256.safetensors"  # in the cache it is not the only model
    else:
        assert variant.download.url == f"https://dl.fbaipublicfiles.com/hiera/{variant.name}.pth"
        assert variant.download.file == f"{variant.name}.pth"


def test_only_abswin_may_be_used_commercially() -> None:
    assert [name for name, variant in VARIANTS.items() if variant.licence.commercial_use] == ["hiera_small_abswin_256"]


def test_demo_models_say_that_they_are_demos() -> None:
    demos = [variant for variant in VARIANTS.values() if variant.demo]
    assert [variant.name for variant in demos] == ["hiera_demo_objects", "hiera_demo_camera_motion"]
    assert all(variant.description.startswith("Demo model") for variant in demos)
    assert all("research" in variant.description for variant in demos)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownVariant, match=r"'hiera_base'.*hiera_base_224.*hiera_demo_objects"):
        find_variant("hiera_base")
