"""Image files of every kind become the pixels that torchvision would see, or the difference is said."""

import io
import logging
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from torchvision.datasets.folder import default_loader

from workbench.data import folder as module
from workbench.data.folder import read_image

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def read(image, tmp_path, suffix="png", **options):
    file = tmp_path / f"a.{suffix}"
    image.save(file, **options)
    return read_image(file, "a", 16), file


def test_sixteen_bit_grey_is_scaled(tmp_path):
    values = np.linspace(0, 65_535, 256).reshape(16, 16).round().astype(np.uint16)
    pixels, _ = read(Image.fromarray(values), tmp_path)
    assert (pixels == RAMP).all()  # 257 k is k; Pillow clips all but the first to white


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_modes_are_read_as_torchvision_reads_them(tmp_path, mode):
    grey = Image.fromarray(RAMP)
    if mode == "P":
        image = Image.merge("RGB", [grey, grey.rotate(90), grey]).quantize(16)
    else:
        image = grey.convert("RGB").convert("RGBA" if mode == "RGBA" else mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(grey.rotate(90))
    pixels, file = read(
        image, tmp_path, "jpg" if mode == "CMYK" else "png", **({"quality": 95} if mode == "CMYK" else {})
    )
    assert (pixels == np.asarray(default_loader(str(file))).transpose(2, 0, 1)).all()


def test_a_palette_with_transparency_keeps_its_colours(tmp_path, recwarn):
    image = Image.fromarray(RAMP // 64).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    pixels, _ = read(image, tmp_path, transparency=bytes([0, 128, 255, 255]))
    assert pixels[:, 0, 0].tolist() == [255, 0, 0] and pixels[:, 5, 0].tolist() == [0, 255, 0]
    assert not recwarn.list


def test_orientation_tags_are_not_applied_as_in_adm(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (16, 16), "red")
    image.paste("blue", (0, 0, 16, 8))
    pixels, _ = read(image, tmp_path, "jpg", exif=exif, quality=100)
    assert pixels[2, :6].min() > 200 and pixels[0, 10:].min() > 200  # blue above, red below, as stored


def test_what_becomes_of_an_image_is_said_once_for_each_kind(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "_noted", set())
    for name in ("a", "b"):
        Image.new("RGBA", (16, 16)).save(tmp_path / f"{name}.png")
        read_image(tmp_path / f"{name}.png", name, 16)
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "c.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(tmp_path / "c.webp", "c", 16)[:, 0, 0].tolist() == [255, 0, 0]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (
        len(said) == 2 and said[0].startswith("a is partly transparent") and said[1].startswith("c has several frames")
    )


def test_a_postscript_program_is_no_image(tmp_path):
    written = tmp_path / "written"
    program = f"({written}) (w) file dup (hello) writestring closefile\nshowpage"
    (tmp_path / "a.png").write_text(f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n{program}")
    with pytest.raises(ValueError, match="a.png is damaged or not an image .PNG, JPEG, WEBP, BMP."):
        read_image(tmp_path / "a.png", "a.png", 16)
    assert not written.exists()


@pytest.mark.parametrize("kind", ["gif", "tiff", "ppm", "ico", "pdf", "eps", "tga"])
def test_other_formats_under_a_known_suffix_are_refused(tmp_path, kind):
    Image.new("RGB", (16, 16)).save(tmp_path / f"a.{kind}")
    shutil.move(tmp_path / f"a.{kind}", tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png is damaged or not an image"):
        read_image(tmp_path / "a.png", "a.png", 16)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, pixels: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_large_text_chunks_do_not_matter(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    text.add_itxt("prompt", "y" * 3_000_000, zip=True)
    pixels, _ = read(Image.fromarray(RAMP), tmp_path, pnginfo=text)
    assert (pixels == RAMP).all()
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000)))
    with pytest.raises(ValueError, match="bomb is damaged or not an image"):
        read_image(io.BytesIO(png(16, 16, bomb)), "bomb", 16)


def test_the_number_of_pixels_is_bounded():
    for width, height in ((100_000, 100_000), (14_000, 14_000), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(ValueError, match="giant is damaged or not an image"):
            read_image(io.BytesIO(png(width, height)), "giant", 16)
    rows = zlib.compress(b"".join(b"\0" + bytes(3) for _ in range(300_000)))
    with pytest.raises(ValueError, match="long is 1x300000: too long to be scaled to 64 pixels"):
        read_image(io.BytesIO(png(1, 300_000, pixels=rows)), "long", 64)
