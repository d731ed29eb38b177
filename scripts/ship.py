"""Takes the best pruned network of an experiment into the library, with its card.

    python scripts/ship.py headline vgg --rate 0.75

Of the seeds that the experiment ran, the one with the best *validation* accuracy is taken. Its weights
are measured once more on the test images, which must give what the experiment's record says, and go
to ``sdap_lite/bundled/pruned/NET-DATA-PERCENT.*``, where ``sdap_lite.models.pruned`` finds them. The
percentage and the card count from the whole network, also where the experiment began with a pruned one.
"""

import argparse
from pathlib import Path

import torch

from sdap_lite import accuracy, data, experiments, models, saving
from sdap_lite.checkpoint import read_sealed, write_sealed

FOLDER = Path(models.__file__).parent / "bundled" / "pruned"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=experiments.RECIPES)
    parser.add_argument("arm")
    parser.add_argument("--rate", type=float, default=0.75)
    parser.add_argument("--out", type=Path, default=experiments.RESULTS, help="the folder of the experiment's record")
    parser.add_argument("--work", type=Path, help="the folder of its pruned networks; default: runs/RECIPE")
    args = parser.parse_args()
    record = read_sealed(args.out / f"{args.recipe}.json")
    row = max((r for r in record["rows"] if r["arm"] == args.arm and r["rate"] == args.rate), key=lambda r: r["validation"])

    recipe, dense = experiments.RECIPES[args.recipe], record["dense"][row["net"]]
    images = data.load(recipe.data, size=recipe.size)
    keys = ("net", "epochs", "rate", "hold", *recipe.arms[args.arm], "seed")
    folder = (args.work or Path("runs") / args.recipe) / experiments.folder_name({key: row[key] for key in dict.fromkeys(keys)})
    sizes = {"in_channels": images.train.images.shape[1], "classes": len(images.classes)}
    model = saving.load(folder / "pruned", models.NETS[row["net"]](**sizes))
    torch.set_num_threads(1)
    test = accuracy(model, images)
    if abs(test - row["test"]) > 0.001:
        parser.error(f"the weights must be those of the record, with {row['test']:.2%} of the test images right, got {test:.2%}")

    dense, rate = {key: dense[key] for key in ("test", "validation", "params", "macs")}, args.rate
    if recipe.begin_with:
        before = models.pruned_card(recipe.begin_with)
        dense, rate = before["dense"], 1 - (1 - before["pruned"]["rate"]) * (1 - args.rate)
        row |= {"achieved": 1 - row["params"] / dense["params"], "macs removed": 1 - row["macs"] / dense["macs"]}
    name = f"{row['net'].removeprefix('torchvision:')}-{recipe.data}-{100 * rate:g}"
    FOLDER.mkdir(exist_ok=True)
    saving.save(model, FOLDER / name)
    about = {key: record["card"][key] for key in ("command", "commit", "data", "settings", "hardware", "versions")}
    of_row = {key: value for key, value in row.items() if key not in ("milliseconds", "milliseconds spread")}
    card = {"net": row["net"], "in_channels": sizes["in_channels"], "classes": list(images.classes), "dense": dense, "pruned": of_row, **about}
    write_sealed(FOLDER / f"{name}.card.json", card)
    print(f"{name}: {dense['test']:.2%} -> {test:.2%} of the test images, {row['achieved']:.2%} of the parameters gone, seed {row['seed']}")


if __name__ == "__main__":
    main()
