"""Real vision models, dense and sparse: accuracy, latency of one image, bytes of the file.

    python benchmarks/bench_vision.py [--quick] [--minutes 2] [--output benchmarks/results/vision.csv]

ResNet-20 on CIFAR-10 (batch norms folded; calibrated and recovered on train images, top-1 on test images) and
MobileNetV2 on a sample of ImageNet (there are no train images: every fifth image calibrates, nothing is recovered;
top-1 on the others; only blocks 11 to 18, which hold most of the weights, are sparse). Convolutions are sparsified by
SparseGPT, and packed where that is faster for one image on this machine. Depthwise convolutions stay dense: nine
weights per channel leave nothing to skip. Latency is the median thread CPU time of one image, one thread, dense and
sparse taking turns: the column `speedup` compares the two within a row's own run, while milliseconds of different rows
were taken minutes apart and do not compare. The data are not part of this repository: SPARSEWRIGHT_ASSETS names their
folder.
"""

import argparse
import copy
import csv
import datetime
import io
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import sparsewright as sw
from sparsewright._native import instruction_set
from sparsewright.hardware import interleave, speedup, this_machine
from sparsewright.training import recover

RESULTS = Path(__file__).parent / "results" / "vision.csv"
RESNET_PATTERNS = ("4x1@50%", "4x1@25%", "16x1@25%")
MOBILENET_PATTERNS = ("75%", "50%", "4x1@75%")
LATE = "re:features\\.1[1-8]\\..*"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if x.shape != y.shape:
            more = (y.shape[1] - x.shape[1]) // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """The ResNet of He et al. 2015 for CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = {"layer1": (16, 16, 1), "layer2": (16, 32, 2), "layer3": (32, 64, 2)}
        for name, (channels, out, stride) in widths.items():
            rest = [BasicBlock(out, out, 1) for _ in range(2)]
            self.add_module(name, nn.Sequential(BasicBlock(channels, out, stride), *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for name in ("layer1", "layer2", "layer3"):
            x = self.get_submodule(name)(x)
        return self.linear(x.mean((2, 3)))


class Unit(nn.Sequential):
    """Convolution and ReLU6; TensorFlow's SAME padding at stride 2, below and on the right."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(nn.Conv2d(channels, out, kernel, stride, padding, groups=groups), nn.ReLU6())
        self.before = (0, 1, 0, 1) if stride == 2 else (0, 0, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.before) if any(self.before) else x)


class Inverted(nn.Module):
    """Expand, filter depthwise, project; the input is added where sizes agree."""

    def __init__(self, channels: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = channels * expand
        first = [Unit(channels, wide, 1)] if expand > 1 else []
        self.conv = nn.Sequential(*first, Unit(wide, wide, 3, stride, wide), nn.Conv2d(wide, out, 1))
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """Sandler et al. 2018, batch norms folded away."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [Unit(3, 32, 3, 2)]
        channels = 32
        for expand, out, count, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for number in range(count):
                parts.append(Inverted(channels, out, stride if number == 0 else 1, expand))
                channels = out
        self.features = nn.Sequential(*parts, Unit(320, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def folded(model: ResNet20) -> nn.Module:
    """The same function with every batch norm in the convolution before it."""
    model = copy.deepcopy(model).eval()
    for owner in [model, *(module for module in model.modules() if isinstance(module, BasicBlock))]:
        for number in (1, 2):
            conv, norm = getattr(owner, f"conv{number}", None), getattr(owner, f"bn{number}", None)
            if conv is not None and norm is not None:
                setattr(owner, f"conv{number}", fuse_conv_bn_eval(conv, norm))
                setattr(owner, f"bn{number}", nn.Identity())
    return model


def cifar(path: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first images `(count, 3, 32, 32)`, normalised, and their labels."""
    with np.load(path) as data:
        jpeg, offsets, labels = data["jpeg"], data["offsets"], data["labels"]
        count = min(count, len(labels))
        pictures = [
            np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes()))) for i in range(count)
        ]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean[:, None, None]) / spread[:, None, None], torch.from_numpy(labels[:count]).long()


def imagenet(path: Path, count: int) -> tuple[Tensor, Tensor]:
    """Images `(count, 3, 224, 224)` in -1..1, evenly chosen, and their classes."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        names = names[:: max(1, len(names) // count)][:count]
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.tensor([int(Path(name).name[:4]) for name in names])


@torch.inference_mode()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose class comes first, 0..1."""
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(100), labels.split(100)))
    return hits / len(labels)


def rows_of(
    name: str,
    dense: nn.Module,
    plans: Mapping[str, str | dict[str, str]],
    calibration: Tensor,
    test: tuple[Tensor, Tensor],
    train: list[Tensor],
    minutes: float,
) -> list[dict[str, object]]:
    """A row for the dense model and one per plan."""
    one = test[0][:1]
    spent = minutes if train else 0.0
    base = {"model": name, "images": len(test[1]), "recovery_minutes": spent}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({key: value.contiguous() for key, value in dense.state_dict().items()}, path)
        dense_bytes = path.stat().st_size
        accuracy = top1(dense, *test)
        rows: list[dict[str, object]] = []
        for text, plan in plans.items():
            model = copy.deepcopy(dense)
            sw.sparsify_(model, plan, method="sparsegpt", data=list(calibration.split(32)))
            one_shot = top1(model, *test)
            if spent > 0:
                recover(model, dense, train, minutes=spent, family="classifier", lr=1e-3)
            packed = sw.pack_(model, batch=one)
            sw.save(model, path)
            calls = {"dense": lambda: dense(one), "sparse": lambda model=model: model(one)}
            samples = interleave(calls, rounds=(15, 60), seconds=4.0, warm=1)
            if not rows:
                figures = {
                    "top1": round(accuracy, 4),
                    "ms": round(1e3 * samples["dense"].median, 3),
                    "bytes": dense_bytes,
                }
                rows.append({**base, "pattern": "dense", "packed": 0, "layers": 0, "top1_one_shot": "", **figures,
                             "speedup": 1.0})  # fmt: skip
            rows.append(
                {
                    **base,
                    "pattern": text,
                    "packed": sum(row.packed for row in packed),
                    "layers": len(packed),
                    "top1_one_shot": round(one_shot, 4),
                    "top1": round(top1(model, *test), 4),
                    "ms": round(1e3 * samples["sparse"].median, 3),
                    "bytes": path.stat().st_size,
                    "speedup": round(speedup(samples["sparse"], samples["dense"]).value, 2),
                }
            )
            print(rows[0] if len(rows) == 2 else "", rows[-1], sep="\n", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pattern each, few images, no recovery")
    parser.add_argument("--minutes", type=float, default=2.0, help="of recovery for each ResNet-20")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    assets = Path(os.environ.get("SPARSEWRIGHT_ASSETS", Path(__file__).parents[2] / "shared" / "assets"))
    if not (assets / "cifar10").is_dir() or not (assets / "imagenet").is_dir():
        raise SystemExit(f"{assets} is not there: set SPARSEWRIGHT_ASSETS to the folder with cifar10/ and imagenet/.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    few = 1 if options.quick else 9
    resnet = ResNet20()
    resnet.load_state_dict(load_file(assets / "cifar10" / "resnet20_jpegft.safetensors"))
    train, _ = cifar(assets / "cifar10" / "cifar10_train_jpeg.npz", 512 if options.quick else 20000)
    test = cifar(assets / "cifar10" / "cifar10_test_dev_jpeg.npz", 500 if options.quick else 5000)
    minutes = 0.0 if options.quick else options.minutes
    # Mirrored images double what there is to learn from.
    batches = [*train.split(64), *train.flip(3).split(64)]
    rows = rows_of(
        "ResNet-20", folded(resnet), {text: text for text in RESNET_PATTERNS[:few]}, train[:512], test, batches, minutes
    )
    mobilenet = MobileNetV2().eval()
    mobilenet.load_state_dict(load_file(assets / "imagenet" / "mobilenet_v2_bnfolded.safetensors"))
    images, labels = imagenet(assets / "imagenet" / "imagenet_sample_dev.zip", 100 if options.quick else 500)
    # Every fifth image calibrates, the others judge.
    judged = torch.arange(len(labels)) % 5 != 0
    sample = (images[judged], labels[judged])
    plans = {f"{text} in blocks 11-18": {LATE: text} for text in MOBILENET_PATTERNS[:few]}
    rows += rows_of("MobileNetV2", mobilenet, plans, images[~judged][:64], sample, [], 0.0)
    where = {
        "machine": this_machine().cpu,
        "instruction_set": instruction_set(),
        "threads": 1,
        "torch": torch.__version__,
        "sparsewright": sw.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *where])
        writer.writeheader()
        writer.writerows({**row, **where} for row in rows)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
