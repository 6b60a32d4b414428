"""Nasty folders: how each is made. `python -m tests.corpus.folders DIR` writes them."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.corpus.files import corners, noise


def pictures(folder: Path, *names: str) -> Path:
    """Write a different picture under each name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = sum(name.encode()) % 200
        image = noise((48, 48)).rotate(7 * len(name) + shade).resize((40, 40))
        image.save(path, "PNG" if path.suffix.lower() not in (".jpg", ".webp") else None)
    return folder


def text(folder: Path, **captions: str) -> None:
    """Write `name.txt` files."""
    for stem, caption in captions.items():
        (folder / f"{stem}.txt").write_text(caption, encoding="utf-8")


def foreign_files(folder: Path) -> None:
    pictures(folder, "a.png", "b.png")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "notes.md", "._a.png", "movie.mp4"):
        (folder / name).write_bytes(b"x")
    pictures(folder / ".ipynb_checkpoints", "a-checkpoint.png")
    pictures(folder / "@eaDir", "a.png")


def directory_named_like_a_picture(folder: Path) -> None:
    pictures(folder, "a.png")
    (folder / "x.png").mkdir()


def empty(folder: Path) -> None:
    folder.mkdir(parents=True)


def only_text(folder: Path) -> None:
    folder.mkdir(parents=True)
    text(folder, a="no picture here")


def one_level_too_high(folder: Path) -> None:
    pictures(folder / "photos", "a.png", "b.png")


def raw_camera_files(folder: Path) -> None:
    pictures(folder, "a.png")
    (folder / "b.CR2").write_bytes(b"II*\0")


def upper_case_endings(folder: Path) -> None:
    pictures(folder, "A.PNG", "B.Png")


def unusual_names(folder: Path) -> None:
    pictures(folder, "mein hund.png", "犬.png", "🐕.png", "a.b.c.png", "100%.png", "-rf.png", "new\nline.png")


def same_stem(folder: Path) -> None:
    pictures(folder, "a.png", "a.webp")


def dangling_link(folder: Path) -> None:
    pictures(folder, "a.png")
    (folder / "b.png").symlink_to(folder / "gone.png")


def link_loop(folder: Path) -> None:
    pictures(folder, "a.png")
    (folder / "b.png").symlink_to(folder / "b.png")
    (folder / "up").symlink_to(folder)


def same_file_twice(folder: Path) -> None:
    pictures(folder, "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())


def nearly_the_same(folder: Path) -> None:
    folder.mkdir(parents=True)
    image = corners((96, 96)).rotate(30, expand=False, fillcolor="yellow")
    image.save(folder / "a.png")
    image.resize((64, 64)).save(folder / "b.jpg", quality=60)
    pictures(folder, "c.png")


def blurred(folder: Path) -> None:
    from PIL import ImageFilter

    folder.mkdir(parents=True)
    image = noise((32, 32)).resize((256, 256), Image.Resampling.NEAREST)
    image.save(folder / "a.png")
    image.filter(ImageFilter.GaussianBlur(5)).save(folder / "b.png")


def too_small(folder: Path) -> None:
    pictures(folder, "a.png")
    corners((5, 5)).save(folder / "z.png")


def every_shape(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(24):
        noise((60 + 7 * number, 200 - 5 * number)).save(folder / f"{number:02d}.png")


def captions_in_txt(folder: Path) -> None:
    pictures(folder, "a.png", "b.png")
    text(folder, a="sks dog\non a  beach\n", b="{token} {class_noun} asleep")


def captions_missing(folder: Path) -> None:
    pictures(folder, "a.png", "b.png", "c.png")
    text(folder, b="sks dog")
    (folder / "c.caption").write_text("sks dog too", encoding="utf-8")


def caption_twice(folder: Path) -> None:
    pictures(folder, "a.png")
    text(folder, a="one")
    (folder / "a.caption").write_text("two", encoding="utf-8")


def caption_with_mark(folder: Path) -> None:
    pictures(folder, "a.png")
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfsks dog")


def caption_utf16(folder: Path) -> None:
    pictures(folder, "a.png", "b.png")
    (folder / "a.txt").write_bytes("sks größer".encode("utf-16"))
    (folder / "b.txt").write_bytes(b"\xfe\xff" + "sks 犬".encode("utf-16-be"))


def caption_cp932(folder: Path) -> None:
    pictures(folder, "a.png", "b.png")
    (folder / "a.txt").write_bytes("sks カ".encode("cp932"))
    (folder / "b.txt").write_bytes(b"caf\xe9")


def caption_binary(folder: Path) -> None:
    pictures(folder, "a.png")
    (folder / "a.txt").write_bytes(b"a\0b")


def caption_empty(folder: Path) -> None:
    pictures(folder, "a.png", "b.png")
    text(folder, a="", b="sks dog")


def caption_orphan(folder: Path) -> None:
    pictures(folder, "a.png")
    text(folder, a="sks dog", z="nobody")


def caption_with_full_name(folder: Path) -> None:
    pictures(folder, "a.png", "a.webp")
    text(folder, **{"a.png": "the png", "a.webp": "the webp"})


def metadata_jsonl(folder: Path) -> None:
    pictures(folder, "a.png", "more/b.png")
    rows = [{"file_name": "a.png", "text": "sks dog"}, {"file_name": "more/b.png", "text": "sks dog b"}]
    rows.append({"file_name": "gone.png", "text": "nothing"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def metadata_csv(folder: Path) -> None:
    pictures(folder, "a.png", "b.png")
    rows = 'file_name,text\r\na.png,"sks dog, sitting"\r\nb.png,sks dog\r\n'
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + rows.encode())


def metadata_other_normal_form(folder: Path) -> None:
    pictures(folder, unicodedata.normalize("NFD", "größer.png"))
    row = {"file_name": unicodedata.normalize("NFC", "größer.png"), "text": "sks dog"}
    (folder / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")


def metadata_broken_line(folder: Path) -> None:
    pictures(folder, "a.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n{"file_name": ', encoding="utf-8")


def metadata_outside(folder: Path) -> None:
    pictures(folder, "a.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "../../etc/passwd", "text": "x"}', encoding="utf-8")


def metadata_two_columns(folder: Path) -> None:
    pictures(folder, "a.png")
    (folder / "metadata.csv").write_text("file_name,text,prompt\na.png,x,y\n", encoding="utf-8")


def metadata_no_name(folder: Path) -> None:
    pictures(folder, "a.png")
    (folder / "metadata.csv").write_text("file,text\na.png,x\n", encoding="utf-8")


def metadata_against_sidecar(folder: Path) -> None:
    pictures(folder, "a.png")
    text(folder, a="one")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "two"}', encoding="utf-8")


def kohya(folder: Path) -> None:
    pictures(folder / "3_sks dog", "a.png", "b.png")
    pictures(folder / "1_sks cat", "c.png")
    text(folder / "1_sks cat", c="sks cat asleep")


def masks(folder: Path) -> None:
    pictures(folder, "a.png", "b.png")
    mask = Image.new("L", (40, 40), 0)
    mask.paste(255, (0, 0, 20, 40))
    mask.save(folder / "a-mask.png")


def mask_of_another_shape(folder: Path) -> None:
    pictures(folder, "a.png")
    Image.new("L", (40, 20), 255).save(folder / "a-mask.png")


def mask_black(folder: Path) -> None:
    pictures(folder, "a.png")
    Image.new("L", (40, 40), 0).save(folder / "a-mask.png")


def makers() -> dict[str, Callable[[Path], None]]:
    """Return the function that makes each nasty folder, by name."""
    helpers = {"pictures", "text", "makers", "corners", "noise"}
    own = {n: f for n, f in globals().items() if callable(f) and getattr(f, "__module__", "") == __name__}
    return {name: function for name, function in own.items() if name not in helpers}


if __name__ == "__main__":
    for maker_name, make in makers().items():
        make(Path(sys.argv[1]) / maker_name)
