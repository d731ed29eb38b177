"""Trains a network that the library ships, and writes its weights, its card and its log.

    python scripts/pretrain.py resnet20 cifar10 --epochs 70
    python scripts/pretrain.py mobilenet_v2 imagenette --size 64 --epochs 16 --batch-size 64 --lr 0.02

writes ``sdap_lite/bundled/resnet20-cifar10.{safetensors,json}``: fp16 weights, and the card with the
data, the recipe, every epoch, the accuracy, the hardware and the commit. ``mobilenet_v2`` is
torchvision's own class, for images of three channels.
"""

import argparse
import hashlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sdap_lite import data, measure, models, provenance
from sdap_lite.train import train

FILES = Path(models.__file__).parent / "bundled"


def build(net: str, channels: int, classes: int) -> torch.nn.Module:
    if net == "mobilenet_v2":
        return models.stock(net, num_classes=classes)
    return models.NETS[net](in_channels=channels, classes=classes)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net", choices=("resnet20", "resnet56", "vgg", "vgg-half", "mobilenet_v2"))
    parser.add_argument("data", choices=("cifar10", "fashion-mini", "imagenette"))
    parser.add_argument("--size", type=int, help="pixels a side; default: the set's own size")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mode", default="auto", help="precision and memory layout; default: what is fastest here")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--checkpoint", type=Path, help="folder for the checkpoint of each epoch")
    parser.add_argument("--resume", type=Path, help="folder of a checkpoint to go on from")
    return parser.parse_args()


def write(model: torch.nn.Module, images: data.Images, path: Path, about: dict[str, Any], history: list[dict[str, float]]) -> dict[str, Any]:
    """A dense network's fp16 weights and their card, beside each other; the model gets the rounded weights. Returns the card."""
    save_file({k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}, f"{path}.safetensors")
    model.load_state_dict(load_file(f"{path}.safetensors"))  # what is shipped is what is measured
    card = {
        "data": images.note,
        "image size": images.train.images.shape[-1],
        "training images": len(images.hold_out()[1]),
        "sha256": hashlib.sha256(Path(f"{path}.safetensors").read_bytes()).hexdigest(),
        "parameters": measure.count_params(model),
        "test accuracy": measure.accuracy(model, images),
        **about,
        "history": [{k: round(v, 5) for k, v in record.items()} for record in history],
    }
    Path(f"{path}.json").write_text(json.dumps(card, indent=1) + "\n")
    return card


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)

    images = data.load(args.data, size=args.size)
    torch.manual_seed(args.seed)
    model = build(args.net, images.train.images.shape[1], len(images.classes))
    commit = provenance.commit()
    start = time.time()
    recipe = {"epochs": args.epochs, "lr": args.lr, "batch_size": args.batch_size, "seed": args.seed}
    result = train(model, images, **recipe, mode=args.mode, checkpoint=args.checkpoint, resume=args.resume)

    about = {
        "net": args.net,
        "command": re.sub(r" --(checkpoint|resume)[ =]\S+", "", " ".join(["python", "scripts/pretrain.py", *sys.argv[1:]])),  # no path of this machine
        "commit": commit,
        "validation accuracy": result.history[-1]["validation"],
        "settings": result.settings,
        "seconds": round(time.time() - start),
        "hardware": provenance.hardware(result.settings["device"]),
        "versions": provenance.versions(),
    }
    card = write(model, images, FILES / f"{args.net}-{args.data}", about, result.history)
    print({k: card[k] for k in ("net", "data", "parameters", "validation accuracy", "test accuracy", "seconds")})


if __name__ == "__main__":
    main()
