"""`python -m training.pretrain VARIANT --data DIR --output FILE`: masked pretraining (MAE) on files without labels.

Every image below DIR is used, or every video for a video variant, but for the few that are held out to watch the run.
FILE is a checkpoint of masked pretraining: fine-tuning starts from it, and a classifier cannot be made of it alone.

The settings are those of Ryali et al. (arXiv 2306.00989), tables 14a (ImageNet-1k) and 11a (Kinetics-400): AdamW with
betas 0.9 and 0.95, weight decay 0.05, a cosine from 8e-4 with a batch of 4096 images or 512 clips, warm-up of 40 or 120
epochs, crops of 20% or 50% of the area at least, mirror images, mask ratio 0.6 or 0.9, drop path from the base
variants on, four clips of a video at a time, no clipping of gradients. What they leave open is as in He et al.'s code
(facebookresearch/mae): the rate is proportional to the batch, the cosine ends at zero and moves with each batch, norms
and biases do not decay. Our own: neither do position embeddings and the mask token, short runs warm up for a tenth of
their epochs, crops come from a file's centre square, and a video's clips are spread evenly over it, not drawn.

After each epoch FILE is written, and beside it FILE's name ending in .resume, from which the same command goes on
after an interruption. It runs on CPUs; `--device cuda` is meant to work and has not been tried on a GPU.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from export.catalog import Variant, find_variant
from export.cli import positive
from export.errors import ExportError
from export.hiera import CONFIGS
from training import flags
from training.folders import FolderError
from training.loop import Diverged, cosine_factor, multiplies_bfloat16, training_arithmetic
from training.mae import DecoderConfig, MaskedAutoencoder, load_pretrained, pixel_labels, shuffled_windows
from training.pictures import Pictures, find_files, held_out_files
from training.record import earlier_runs, facts_of, save
from training.sound_files import LeftOut

BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.05
DROP_PATH = {
    "hiera_base_224": 0.2,
    "hiera_base_plus_224": 0.2,
    "hiera_large_224": 0.2,
    "hiera_huge_224": 0.3,
    "hiera_base_16x224": 0.1,
    "hiera_base_plus_16x224": 0.2,
    "hiera_large_16x224": 0.2,
    "hiera_huge_16x224": 0.3,  # for 1600 epochs; the paper takes 0.4 and a lower rate, 3.2e-4, for 3200
}


@dataclass(frozen=True)
class PaperSettings:
    """What differs between images and video. `rate` is the highest learning rate, for a batch of 256."""

    rate: float
    epochs: int
    warmup_epochs: int
    smallest_crop: float
    clips: int


IMAGES = PaperSettings(rate=8e-4 * 256 / 4096, epochs=400, warmup_epochs=40, smallest_crop=0.2, clips=1)
VIDEO = PaperSettings(rate=8e-4 * 256 / 512, epochs=800, warmup_epochs=120, smallest_crop=0.5, clips=4)


def make_optimiser(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW, without decay for vectors, position embeddings and the mask token."""

    def decays(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim > 1 and "pos_embed" not in name and name != "mask_token"

    named = list(model.named_parameters())
    groups = [
        {"params": [parameter for name, parameter in named if decays(name, parameter) == decay], "weight_decay": value}
        for decay, value in ((True, WEIGHT_DECAY), (False, 0.0))
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS)


class Normalise:
    """uint8 [B, T, 3, H, W] to the model's float32 [B, 3, H, W] or [B, 3, T, H, W] on its device."""

    def __init__(self, variant: Variant, device: torch.device) -> None:
        self.device, self.is_video = device, variant.task == "video"
        self.mean, self.std = (
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (variant.preprocessing.mean, variant.preprocessing.std)
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        x = (pixels.to(self.device).float() / 255.0 - self.mean) / self.std
        return x.transpose(1, 2).contiguous() if self.is_video else x[:, 0]


@torch.no_grad()
def measure(model: MaskedAutoencoder, pictures: Pictures, normalise: Normalise, batch: int) -> dict[str, float]:
    """The loss on centre crops under masks that are always the same, in float32.

    Returns:
        "loss", and "trivial", the loss of who says of each hidden token its true mean: everything but its details;
        "files", how many could be decoded.

    Raises:
        FolderError: none could.
    """
    model.eval()
    generator = torch.Generator().manual_seed(0)
    totals, measured, files = torch.zeros(2, dtype=torch.float64), 0, max(1, batch // pictures.clips)
    for start in range(0, len(pictures.paths), files):
        chosen = range(start, min(start + files, len(pictures.paths)))
        sound = [clips for index in chosen if (clips := pictures.centre(index)) is not None]
        if not sound:
            continue
        x = normalise(torch.cat(sound))
        order = shuffled_windows(len(x), model.config.windows, generator).to(x.device)
        labels = model.of_hidden(pixel_labels(x, model.pixel_stride, model.config), order)
        totals += len(sound) * torch.tensor([model(x, order).item(), labels.square().mean().item()])
        measured += len(sound)
    model.train()
    if not measured:
        raise FolderError("none of the files that are held out can be decoded any more: see above for why")
    loss, trivial = (totals / measured).tolist()
    return {"loss": round(loss, 4), "trivial": round(trivial, 4), "files": measured}


class Resume:
    """What the rest of an interrupted run needs, in a file beside its weights."""

    def __init__(self, output: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = output.with_suffix(".resume"), settings

    def load(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[list[float], float]:
        """The losses of the epochs that are over and the seconds that these took; none where there is no such file.

        Raises:
            ValueError: the file is of a run with other settings.
        """
        if not self.path.exists():
            return [], 0.0
        try:
            document = torch.load(self.path, map_location="cpu", weights_only=True)
            settings, losses, seconds = document["settings"], document["losses"], document["seconds"]
            states = document["model"], document["optimiser"]
        except Exception as error:  # of a file that is none, torch lets through what zipfile, pickle and others say
            raise ValueError(f"{self.path} cannot be gone on from ({error!r}): remove it to begin anew") from error
        if settings != self.settings:
            raise ValueError(f"{self.path} is of a run with other settings: {settings}; remove it, or them")
        model.load_state_dict(states[0])
        optimiser.load_state_dict(states[1])
        return losses, seconds

    def save(self, model: nn.Module, optimiser: torch.optim.Optimizer, losses: list[float], seconds: float) -> None:
        """Write it in one piece."""
        document = {"settings": self.settings, "losses": losses, "seconds": seconds}
        document |= {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
        partial = self.path.with_suffix(".resume.partial")
        torch.save(document, partial)
        os.replace(partial, self.path)


def train_epoch(
    model: MaskedAutoencoder,
    optimiser: torch.optim.Optimizer,
    batches: Iterator[Tensor],
    rates: Iterator[float],
    seed: int,
    bar: tqdm[Any],
) -> float:
    """One pass over `batches`, normalised float32 [B, 3, …]; returns the mean loss. `rates` are learning rates."""
    device = next(model.parameters()).device
    bfloat16 = multiplies_bfloat16(device.type)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # drop path
    total, steps = torch.zeros((), device=device), 0
    for x in batches:
        rate = next(rates)
        for group in optimiser.param_groups:
            group["lr"] = rate
        order = shuffled_windows(len(x), model.config.windows, generator).to(device)
        with training_arithmetic(bfloat16, device.type):
            loss = model(x, order)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        total, steps = total + loss.detach(), steps + 1
        bar.update()
    return float(total) / steps


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Pretrain as `options` (of `parse`) say, and write the weights and the record, which is returned.

    Raises:
        ValueError: too few files, or settings that do not fit each other.
        FolderError: too many files in a row cannot be decoded.
        Diverged: the loss is no number any more; what the epochs before have left stays.
        CheckpointError: the initial weights do not fit.
    """
    variant, config = find_variant(options.variant), CONFIGS[options.variant]
    paper = VIDEO if config.is_video else IMAGES
    left_out = LeftOut()
    paths = find_files(options.data, variant.task, left_out)
    watched = held_out_files(Pictures(paths, variant, paper.clips, 0, left_out))
    pictures = Pictures(sorted(set(paths) - set(watched)), variant, paper.clips, left_out=left_out)
    steps_per_epoch = len(pictures.paths) // (options.batch // paper.clips) if options.batch >= paper.clips else 0
    if steps_per_epoch == 0:
        raise ValueError(
            f"{options.data}: {len(paths)} {variant.task} files are too few for a batch of {options.batch}"
        )
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    decoder = DecoderConfig(options.decoder_dim, options.decoder_depth, options.decoder_heads)
    model = MaskedAutoencoder(config, decoder, options.mask_ratio, DROP_PATH.get(variant.name, 0.0))
    if options.initial:
        load_pretrained(model, options.initial)
    model.to(device).train()
    epochs, warmup_epochs = options.epochs, min(paper.warmup_epochs, options.epochs / 10)
    rate = options.rate * options.batch / 256
    optimiser = make_optimiser(model, rate)
    facts = {
        "name": variant.name,
        "data": f"{len(pictures.paths)} {variant.task} files, without labels",
        "epochs": epochs,
        "mask_ratio": round(1 - model.visible / config.windows, 4),
        "decoder": asdict(decoder),
        "learning_rate": rate,
        "rate": options.rate,
        "batch": options.batch,
        "seed": options.seed,
    }
    resume = Resume(options.output, facts)
    losses, seconds_before = resume.load(model, optimiser)
    normalise = Normalise(variant, device)
    watched_pictures = Pictures(watched, variant, paper.clips, left_out=left_out)
    before, started = earlier_runs(options.initial), time.monotonic()
    done, steps = len(losses), epochs * steps_per_epoch
    rates = (
        rate * cosine_factor(step, steps, warmup_epochs * steps_per_epoch)
        for step in range(done * steps_per_epoch, steps)
    )
    record: dict[str, Any] = {}
    with tqdm(total=steps, initial=done * steps_per_epoch, unit="step", mininterval=5.0, dynamic_ncols=True) as bar:
        for epoch in range(done, epochs):
            seed = options.seed * 1_000_003 + epoch
            crops = pictures.epoch(options.batch, paper.smallest_crop, seed, options.workers)
            losses.append(round(train_epoch(model, optimiser, map(normalise, crops), rates, seed, bar), 4))
            if not math.isfinite(losses[-1]):
                raise Diverged((epoch + 1) * steps_per_epoch)
            held_out = measure(model, watched_pictures, normalise, options.batch)
            seconds = seconds_before + time.monotonic() - started
            record = {
                **facts,
                **facts_of(options, (epoch + 1) * steps_per_epoch, seconds),
                "epochs": epoch + 1,
                "losses": losses,
                "held_out": held_out,
                "left_out": left_out.listed(),
                "earlier_runs": before,
                "parameters": sum(p.numel() for p in model.parameters()),
            }
            save({name: value.cpu() for name, value in model.state_dict().items()}, record, options.output)
            resume.save(model, optimiser, losses, seconds)
            bar.set_postfix_str(f"loss {losses[-1]:.4f} held-out {held_out['loss']:.4f} of {held_out['trivial']:.4f}")
    resume.path.unlink(missing_ok=True)
    return record


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a run, with the paper's in place of those that are not given."""
    parser = argparse.ArgumentParser(prog="python -m training.pretrain", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("variant", choices=CONFIGS, metavar="VARIANT", help=f"one of {', '.join(CONFIGS)}")
    parser.add_argument("--data", type=Path, required=True, help="folder of images or videos, in any folders below")
    parser.add_argument("--output", type=flags.weights_file, required=True, help="the .safetensors file to write")
    parser.add_argument("--initial", type=Path, help="start from this MAE checkpoint, as mae_hiera_tiny_224.pth is")
    parser.add_argument(
        "--epochs", type=positive, help="passes over the clips of the files; the paper's shortest if not given"
    )
    parser.add_argument("--batch", type=positive, help="images (256 if not given) or clips (32)")
    parser.add_argument(
        "--rate", type=flags.within(1e-12), help="highest learning rate, for a batch of 256; the paper's if not given"
    )
    parser.add_argument(
        "--mask-ratio", type=flags.within(0.0, 1.0), help="part of the mask units that is hidden; 0.6, of clips 0.9"
    )
    parser.add_argument("--decoder-dim", type=positive, default=DecoderConfig.dim)
    parser.add_argument("--decoder-depth", type=positive, default=DecoderConfig.depth)
    parser.add_argument("--decoder-heads", type=positive, default=DecoderConfig.heads)
    parser.add_argument(
        "--device", type=flags.device, default="auto", help="cpu, cuda, cuda:1; auto takes a GPU if there is one"
    )
    parser.add_argument("--seed", type=flags.whole(0), default=0)
    parser.add_argument("--threads", type=positive, default=1, help="that compute, on the CPU")
    parser.add_argument("--workers", type=positive, default=1, help="threads that decode")
    options = parser.parse_args(arguments)
    is_video = CONFIGS[options.variant].is_video
    paper = VIDEO if is_video else IMAGES
    if options.decoder_dim % options.decoder_heads:
        parser.error(f"--decoder-dim {options.decoder_dim} is no multiple of --decoder-heads {options.decoder_heads}")
    options.epochs = options.epochs or paper.epochs
    options.rate = options.rate or paper.rate
    options.batch = options.batch or (32 if is_video else 256)
    return options


def main(arguments: list[str] | None = None) -> None:
    """Pretrain, and say where the weights are."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        record = run(options)
    except (ValueError, FolderError, Diverged, ExportError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("interrupted: the same command goes on after the last epoch that was over") from None
    held_out = record["held_out"]
    print(
        f"held-out loss {held_out['loss']}; each token's true mean would give {held_out['trivial']}: {options.output}"
    )


if __name__ == "__main__":
    main()
