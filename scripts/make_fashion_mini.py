"""Makes ``sdap_lite/bundled/fashion-mini.npz``: 10,000 + 2,000 images of Fashion-MNIST, evenly by class.

The original files (Xiao et al. 2017, MIT licence) come with Debian's package
``dataset-fashion-mnist``. Run from the repository's root:

    python scripts/make_fashion_mini.py /usr/share/datasets/fashion-mnist
"""

import gzip
import sys
from pathlib import Path

import numpy as np


def read(path: Path) -> np.ndarray:
    """One IDX file: a magic number whose last byte counts the dimensions, their sizes, the bytes."""
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def subset(folder: Path, part: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read(folder / f"{part}-images-idx3-ubyte.gz"), read(folder / f"{part}-labels-idx1-ubyte.gz")
    rng = np.random.default_rng(0)
    chosen = np.sort(np.concatenate([rng.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in range(10)]))
    return images[chosen], labels[chosen]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    (train_x, train_y), (test_x, test_y) = subset(folder, "train", 1000), subset(folder, "t10k", 200)
    out = Path("sdap_lite/bundled/fashion-mini.npz")
    np.savez_compressed(out, train_images=train_x, train_labels=train_y, test_images=test_x, test_labels=test_y)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")
