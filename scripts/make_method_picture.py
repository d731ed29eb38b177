"""Draws ``book/images/method.png``, the whole method as one picture.

Run from the repository's root:

    python scripts/make_method_picture.py
"""

from pathlib import Path

from sdap_lite.plots import method_picture

if __name__ == "__main__":
    path = Path("book/images/method.png")
    path.parent.mkdir(exist_ok=True)
    method_picture().savefig(path, dpi=200, facecolor="white", metadata={"Software": None})
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
