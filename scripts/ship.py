"""Takes the best pruned network of an experiment into the library, with its card.

    python scripts/ship.py headline vgg --rate 0.75

Of the seeds that the experiment ran, the one with the best *validation* accuracy is taken. Its weights
are measured once more on the test images, which must give what the experiment's record says, and go
to ``sdap_lite/bundled/pruned/NET-DATA-PERCENT.*``, where ``sdap_lite.models.pruned`` finds them. The
percentage and the card count from the whole network, also where the experiment began with a pruned one.

    python scripts/ship.py headline-resnet56-long dense

takes the dense network that the experiment trained, for ``pretrained=``. All weights are stored as fp16.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from pretrain import write
from torch import nn

from sdap_lite import accuracy, data, experiments, models, recipes, saving
from sdap_lite.checkpoint import read_checkpoint, read_sealed, write_sealed

BUNDLED = Path(models.__file__).parent / "bundled"
FOLDER = BUNDLED / "pruned"


def measured(model: nn.Module, images: data.Images, told: float) -> float:
    """The accuracy of what is shipped, rounded weights; ends the program where it is not what the record says."""
    torch.set_num_threads(1)
    test = accuracy(model.half().float(), images)
    if abs(test - told) > 0.001:
        sys.exit(f"the weights must be those of the record, with {told:.2%} of the test images right, got {test:.2%}")
    return test


def ship_dense(record: dict[str, Any], recipe: recipes.Recipe, work: Path) -> str:
    """The dense network that the experiment trained, and its card."""
    images, (net, told) = data.load(recipe.data, size=recipe.size), next(iter(record["dense"].items()))
    trained = read_checkpoint(work / "dense-seed0")
    model = models.NETS[net](in_channels=images.train.images.shape[1], classes=len(images.classes))
    model.load_state_dict(trained["model"])
    measured(model, images, told["test"])
    about = {"net": net, "validation accuracy": told["validation"], "settings": trained["settings"], "seconds": round(told["seconds"])}
    about |= {key: record["card"][key] for key in ("command", "commit", "hardware", "versions")}
    name = f"{net.removeprefix('torchvision:')}-{recipe.data}"
    return f"{name}: {write(model, images, BUNDLED / name, about, trained['history'])['test accuracy']:.2%} of the test images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=recipes.RECIPES)
    parser.add_argument("arm", help="or dense")
    parser.add_argument("--rate", type=float, default=0.75)
    parser.add_argument("--out", type=Path, default=experiments.RESULTS, help="the folder of the experiment's record")
    parser.add_argument("--work", type=Path, help="the folder of its pruned networks; default: runs/RECIPE")
    args = parser.parse_args()
    record = read_sealed(args.out / f"{args.recipe}.json")
    work = args.work or Path("runs") / args.recipe
    if args.arm == "dense":
        print(ship_dense(record, recipes.RECIPES[args.recipe], work))
        return
    row = max((r for r in record["rows"] if r["arm"] == args.arm and r["rate"] == args.rate), key=lambda r: r["validation"])

    recipe, dense = recipes.RECIPES[args.recipe], record["dense"][row["net"]]
    images = data.load(recipe.data, size=recipe.size)
    keys = ("net", "epochs", "rate", "hold", "alpha", *recipe.arms[args.arm], "seed")
    folder = work / experiments.folder_name({key: row[key] for key in dict.fromkeys(keys)})
    sizes = {"in_channels": images.train.images.shape[1], "classes": len(images.classes)}
    model = saving.load(folder / "pruned", models.NETS[row["net"]](**sizes))
    test = measured(model, images, row["test"])

    dense, rate = {key: dense[key] for key in ("test", "validation", "params", "macs")}, args.rate
    if recipe.begin_with:
        before = models.pruned_card(recipe.begin_with)
        dense, rate = before["dense"], 1 - (1 - before["pruned"]["rate"]) * (1 - args.rate)
        row |= {"achieved": 1 - row["params"] / dense["params"], "macs removed": 1 - row["macs"] / dense["macs"]}
    name = f"{row['net'].removeprefix('torchvision:')}-{recipe.data}-{100 * rate:g}"
    FOLDER.mkdir(exist_ok=True)
    saving.save(model.half(), FOLDER / name)
    about = {key: record["card"][key] for key in ("command", "commit", "data", "settings", "hardware", "versions")}
    about |= {key: row[key] for key in ("commit", "hardware") if key in row}  # the record's are those of its last process
    of_row = {key: value for key, value in row.items() if key not in ("milliseconds", "milliseconds spread")}
    card = {"net": row["net"], "in_channels": sizes["in_channels"], "classes": list(images.classes), "dense": dense, "pruned": of_row, **about}
    write_sealed(FOLDER / f"{name}.card.json", card)
    print(f"{name}: {dense['test']:.2%} -> {test:.2%} of the test images, {row['achieved']:.2%} of the parameters gone, seed {row['seed']}")


if __name__ == "__main__":
    main()
