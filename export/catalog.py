"""What each variant is, outside its arithmetic: classes, preprocessing, licence, published accuracy, where weights are.

Sources: Ryali et al. (arXiv 2306.00989) and its repository facebookresearch/hiera for Meta's models and figures; the
model cards of timm for `hiera_small_abswin_256`; SlowFast's Kinetics protocol for sampling. This module needs no torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.repository.manifest import Accuracy, Preprocessing, Sampling
from export.errors import UnknownVariant, WrongLabels

ROOT = Path(__file__).parent

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINETICS_MEAN, KINETICS_STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)


@dataclass(frozen=True)
class Licence:
    """Terms of the weights (the code here is Apache-2.0 whatever they are)."""

    name: str
    commercial_use: bool
    notice: str


@dataclass(frozen=True)
class Download:
    """Where official weights lie. `file` is also the name in the cache and on a mirror."""

    url: str
    file: str
    licence: Licence
    sha256: str | None = None


@dataclass(frozen=True)
class LabelSet:
    """Class names in the head's order, with the digest of the file that ships them."""

    title: str
    path: Path
    sha256: str | None = None


@dataclass(frozen=True)
class Variant:
    """One row of `hiera-export list`. `gmacs` is multiply-accumulates of one row, in 10^9."""

    name: str
    task: Literal["image", "video"]
    num_classes: int
    parameters: int
    gmacs: float
    labels: LabelSet
    preprocessing: Preprocessing
    sampling: Sampling | None
    download: Download | None
    accuracy: tuple[Accuracy, ...]
    title: str
    description: str
    demo: bool = False

    @property
    def licence(self) -> Licence:
        """Terms of the weights that `build` uses when none are given."""
        return RESEARCH_ONLY if self.download is None else self.download.licence


CC_BY_NC = Licence(
    "CC-BY-NC-4.0",
    False,
    "Meta's weights, under CC-BY-NC-4.0: NOT for commercial use, and whoever passes them on names the source.",
)
APACHE = Licence("Apache-2.0", True, "timm's weights, under Apache-2.0: commercial use is allowed.")
RESEARCH_ONLY = Licence(
    "research use only", False, "A demo model trained on photos that are for research use; it shows that serving works."
)
OWN_WEIGHTS = Licence(
    "as given by the owner of the weights",
    False,
    "These weights are yours: their licence is not known here, so the manifest claims no right to commercial use.",
)
RANDOM_WEIGHTS = Licence("none needed", True, "RANDOM weights, for benchmarks and tests: the predictions mean nothing.")

IMAGENET = LabelSet(
    "ImageNet-1k", ROOT / "labels/imagenet-1k.txt", "ee4fa67b1dd46919ef87529b70e25bdd1ec9ebd350de3ad426e6640eb70320a1"
)
KINETICS = LabelSet(
    "Kinetics-400", ROOT / "labels/kinetics-400.txt", "e9f2806fe9109b851a80a74841244f6f8c9d10917fa0229cd82bab67f2f8e28f"
)
DEMO_OBJECTS = LabelSet("CIFAR-10", ROOT.parent / "training/labels/objects.txt")
DEMO_CAMERA_MOTION = LabelSet("camera motion", ROOT.parent / "training/labels/camera_motion.txt")


def _meta(name: str, title: str, parameters: int, gmacs: float, top1: float) -> Variant:
    video = name.endswith("16x224")
    data = KINETICS if video else IMAGENET
    pretraining = "Kinetics-400" if video else "ImageNet-1k"
    how = (
        "published (arXiv 2306.00989), 5 clips x 3 crops" if video else "published (arXiv 2306.00989), one centre crop"
    )
    return Variant(
        name=name,
        task="video" if video else "image",
        num_classes=400 if video else 1000,
        parameters=parameters,
        gmacs=gmacs,
        labels=data,
        preprocessing=Preprocessing(
            resize_short_side=256,
            height=224,
            width=224,
            interpolation="bilinear" if video else "bicubic",
            mean=KINETICS_MEAN if video else IMAGENET_MEAN,
            std=KINETICS_STD if video else IMAGENET_STD,
        ),
        sampling=Sampling(frames=16, mode="dense", stride=4, target_fps=30.0) if video else None,
        download=Download(f"https://dl.fbaipublicfiles.com/hiera/{name}.pth", f"{name}.pth", CC_BY_NC),
        accuracy=(Accuracy(dataset=data.title, top1=top1, how=how),),
        title=title,
        description=f"{title}, MAE-pretrained and fine-tuned on {pretraining}",
    )


def _abswin() -> Variant:
    repository = "timm/hiera_small_abswin_256.sbb2_e200_in12k_ft_in1k"
    return Variant(
        name="hiera_small_abswin_256",
        task="image",
        num_classes=1000,
        parameters=34_361_800,
        gmacs=8.266,
        labels=IMAGENET,
        preprocessing=Preprocessing(
            resize_short_side=269,  # int(256 / 0.95), as timm computes it from its crop_pct of 0.95
            height=256,
            width=256,
            interpolation="bicubic",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
        sampling=None,
        download=Download(
            f"https://huggingface.co/{repository}/resolve/main/model.safetensors",
            "hiera_small_abswin_256.safetensors",
            APACHE,
        ),
        accuracy=(Accuracy(dataset="ImageNet-1k", top1=84.91, how=f"published (model card of {repository})"),),
        title="Hiera small with absolute window position embedding",
        description="Hiera small with window position embedding, trained on ImageNet-12k, fine-tuned on ImageNet-1k",
    )


def _demos() -> tuple[Variant, Variant]:
    objects = Variant(
        name="hiera_demo_objects",
        task="image",
        num_classes=10,
        parameters=1_225_690,
        gmacs=0.052,
        labels=DEMO_OBJECTS,
        preprocessing=Preprocessing(
            resize_short_side=32, height=32, width=32, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
        sampling=None,
        download=None,
        accuracy=(),
        title="micro Hiera of the object demo",
        description="Demo model: a micro Hiera trained on CIFAR-10's ten classes at 32x32 pixels; for research use",
        demo=True,
    )
    camera_motion = Variant(
        name="hiera_demo_camera_motion",
        task="video",
        num_classes=10,
        parameters=1_198_618,
        gmacs=0.139,
        labels=DEMO_CAMERA_MOTION,
        preprocessing=Preprocessing(
            resize_short_side=64, height=64, width=64, interpolation="bilinear", mean=KINETICS_MEAN, std=KINETICS_STD
        ),
        sampling=Sampling(frames=16, mode="dense", stride=4, target_fps=30.0),
        download=None,
        accuracy=(),
        title="micro Hiera of the camera motion demo",
        description="Demo model: a micro Hiera trained on rendered clips to name the camera's motion; for research use",
        demo=True,
    )
    return objects, camera_motion


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        _meta("hiera_tiny_224", "Hiera tiny", 27_910_216, 4.901, 82.8),
        _meta("hiera_small_224", "Hiera small", 35_008_072, 6.406, 83.8),
        _meta("hiera_base_224", "Hiera base", 51_524_968, 9.375, 84.5),
        _meta("hiera_base_plus_224", "Hiera base plus", 69_896_616, 12.641, 85.2),
        _meta("hiera_large_224", "Hiera large", 213_739_912, 40.271, 86.1),
        _meta("hiera_huge_224", "Hiera huge", 672_779_752, 124.733, 86.9),
        _abswin(),
        _meta("hiera_base_16x224", "Hiera base for video", 51_092_560, 101.726, 84.0),
        _meta("hiera_base_plus_16x224", "Hiera base plus for video", 69_392_240, 132.302, 85.0),
        _meta("hiera_large_16x224", "Hiera large for video", 213_091_600, 412.130, 87.3),
        _meta("hiera_huge_16x224", "Hiera huge for video", 671_627_664, 1157.796, 87.8),
        *_demos(),
    )
}


def find_variant(name: str) -> Variant:
    """Raises UnknownVariant, with the names that exist."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise UnknownVariant(f"no variant is called {name!r}; there are: {', '.join(VARIANTS)}") from None


def read_label_set(labels: LabelSet) -> tuple[str, ...]:
    """Class names of a shipped list.

    Raises:
        WrongLabels: the file is not the one that was released.
    """
    content = labels.path.read_bytes()
    if labels.sha256 is not None and hashlib.sha256(content).hexdigest() != labels.sha256:
        raise WrongLabels(f"{labels.path} was changed: its sha256 is not {labels.sha256}; install hiera-serve again")
    return tuple(content.decode("utf-8").splitlines())
