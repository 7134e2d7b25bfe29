"""Real photos of products, where they lie beside the checkout: the objects of google/dreambooth (CC BY 4.0)."""

import csv
from pathlib import Path

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "dreambooth"
PETS = ("cat", "dog")


def photo_rows() -> list[tuple[str, str]]:
    """(path below PHOTOS, subject class) of every object photo: 512 px ones, and the originals of up to 2048 px."""
    lines = (PHOTOS / "prompts_and_classes.txt").read_text(encoding="utf-8").splitlines()
    classes = dict(line.split(",") for line in lines if line.count(",") == 1 and "(" not in line)
    photos = sorted(path.relative_to(PHOTOS).as_posix() for path in PHOTOS.glob("*/*/*.jpg"))
    rows = [(path, classes[path.split("/")[1]]) for path in photos]
    return [(path, subject) for path, subject in rows if subject not in PETS]


def write_photo_csv(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """A category CSV without masks; `folder` gets links to the photos' folders' files as copies, for a CSV's paths lie
    below it."""
    path = folder / "photos.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("input", "mask", "output", "prompt", "category"))
        for photo, subject in rows:
            copy = folder / photo
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((PHOTOS / photo).read_bytes())
            writer.writerow(("", "", photo, f"a {subject}", f"CDP_{subject.upper().replace(' ', '_')}"))
    return path
