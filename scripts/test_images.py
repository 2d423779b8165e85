"""Makes tests/data/images: one small file for every kind of image that decoding promises to read, and what Pillow's
resampling and ADM's centre crop make of a picture given by a formula.   python3 scripts/test_images.py   (Pillow, numpy)

Every kind shows the same four quarters of 8x8 pixels: red, green / blue, grey 100; translucent ones differ as noted.
"""
import io, pathlib
import numpy as np
from PIL import Image

OUT = pathlib.Path(__file__).parent.parent / "tests/data/images"
OUT.mkdir(parents=True, exist_ok=True)


def quarters(a, b, c, d, dtype=np.uint8):
    x = np.zeros((16, 16, len(a)), dtype)
    x[:8, :8], x[:8, 8:], x[8:, :8], x[8:, 8:] = a, b, c, d
    return x


rgb = quarters((220, 20, 20), (20, 200, 20), (20, 20, 210), (100, 100, 100))
image = Image.fromarray(rgb)
jpeg = dict(quality=95, subsampling=0)
image.save(OUT / "rgb.jpg", **jpeg)
image.save(OUT / "progressive.jpg", progressive=True, **jpeg)
image.save(OUT / "keep_rgb.jpg", keep_rgb=True, **jpeg)
exif = Image.Exif(); exif[0x0112] = 6  # "rotate": to be ignored
image.save(OUT / "orientation.jpg", exif=exif, **jpeg)
gray = quarters((30,), (90,), (160,), (230,))[..., 0]
Image.fromarray(gray).save(OUT / "gray.jpg", **jpeg)

# CMYK with some black; Pillow writes it inverted with an Adobe marker, as Adobe does.
inverse = 255 - rgb.astype(int); k = inverse.min(2)
cmy = np.round(255 * (inverse - k[..., None]) / (255 - k[..., None]))
Image.fromarray(np.dstack([cmy, k]).astype(np.uint8), "CMYK").save(OUT / "cmyk.jpg", **jpeg)
# YCCK: planes Y, Cb, Cr of the inverse picture and K, with the Adobe marker's transform set to 2.
ycc = np.asarray(Image.fromarray((255 - rgb)).convert("YCbCr"))
b = io.BytesIO(); Image.fromarray(np.dstack([255 - ycc, 0 * k]).astype(np.uint8), "CMYK").save(b, "JPEG", **jpeg)
b = bytearray(b.getvalue()); at = b.index(b"Adobe"); assert b[at + 11] == 0; b[at + 11] = 2
(OUT / "ycck.jpg").write_bytes(b)

image.save(OUT / "rgb.png")
image.convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save(OUT / "palette.png")
Image.fromarray(gray).save(OUT / "gray.png")
alpha = quarters((255,), (255,), (0,), (128,))[..., 0]  # blue is invisible: white; grey 100 half: (100*128 + 255*127) / 255 = 177
Image.fromarray(np.dstack([rgb, alpha])).save(OUT / "rgba.png")
Image.fromarray(np.dstack([gray, alpha])).save(OUT / "gray_alpha.png")
p = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=4); p.save(OUT / "palette_transparent.png", transparency=p.getpixel((0, 15)))  # blue: white
Image.fromarray(gray.astype(np.uint16) * 257).save(OUT / "gray16.png")
image.save(OUT / "lossy.webp", quality=95)
Image.fromarray(np.dstack([rgb, alpha])).save(OUT / "alpha.webp", lossless=True, exact=True)

# Other kinds; the last three are refused by name.
image.save(OUT / "rgb.bmp"); image.convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save(OUT / "palette.bmp")
image.save(OUT / "rgb.ppm"); Image.fromarray(gray).save(OUT / "gray.pgm")
(OUT / "text.ppm").write_text("P3 # of any maximum\n16 16\n1000\n" + " ".join(str(round(v / 255 * 1000)) for v in rgb.reshape(-1)) + "\n")
(OUT / "maximum_100.ppm").write_bytes(b"P6\n16 16\n100\n" + np.round(rgb / 255 * 100).astype(np.uint8).tobytes())
(OUT / "maximum_1000.pgm").write_bytes(b"P5\n16 16\n1000\n" + np.round(gray / 255 * 1000).astype(">u2").tobytes())
black = quarters((1,), (0,), (0,), (1,))[..., 0]
(OUT / "bits.pbm").write_bytes(b"P4\n16 16\n" + np.packbits(black, 1).tobytes())
(OUT / "bits_text.pbm").write_text("P1\n16 16\n" + "\n".join("".join(map(str, row)) for row in black) + "\n")
for compression in ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate"):
    image.save(OUT / f"rgb_{compression.split('_')[-1]}.tif", compression=compression)
image.save(OUT / "big.tif", big_tiff=True)
Image.fromarray(gray).save(OUT / "gray.tif"); Image.fromarray(gray.astype(np.uint16) * 257 + 3).save(OUT / "gray16.tif")
Image.fromarray(255 - 255 * black).convert("1").save(OUT / "bits.tif")
Image.fromarray(np.dstack([rgb, alpha])).save(OUT / "rgba.tif"); Image.fromarray(np.dstack([gray, alpha])).save(OUT / "gray_alpha.tif")
Image.fromarray(np.dstack([cmy, k]).astype(np.uint8), "CMYK").save(OUT / "cmyk.tif")
image.save(OUT / "jpeg.tif", compression="jpeg"); image.convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save(OUT / "palette.tif")
Image.fromarray(gray.astype(np.float32) / 255).save(OUT / "float.tif")


def png16(x, path):
    """Pillow writes no 16-bit colour."""
    import struct, zlib
    chunk = lambda t, d: struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))
    rows = b"".join(b"\0" + r.astype(">u2").tobytes() for r in x)
    head = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b""))


png16(rgb.astype(np.uint16) * 257 + 3, OUT / "rgb16.png")

for f in sorted(OUT.glob("*.*")):  # Pillow agrees about what they show
    if f.suffix in (".jpg", ".png", ".webp") and "resize" not in f.name and "crop" not in f.name:
        x = Image.open(f).convert("RGBA") if "alpha" in f.name or "trans" in f.name or "rgba" in f.name else Image.open(f).convert("RGB")
        print(f.name, f.stat().st_size, [x.getpixel(q) for q in ((4, 4), (12, 4), (4, 12), (12, 12))])


# ---------------------------------------------------------------- resampling
def formula(w, h):
    y, x, c = np.mgrid[:h, :w, :3]
    return ((x * x * 3 + y * y * 5 + x * y * 7 + c * 91) // 4 % 256).astype(np.uint8)


def center_crop_arr(pil_image, image_size):
    """guided-diffusion, image_datasets.py"""
    while min(*pil_image.size) >= 2 * image_size:
        pil_image = pil_image.resize(tuple(x // 2 for x in pil_image.size), resample=Image.BOX)
    scale = image_size / min(*pil_image.size)
    pil_image = pil_image.resize(tuple(round(x * scale) for x in pil_image.size), resample=Image.BICUBIC)
    arr = np.array(pil_image)
    crop_y, crop_x = (arr.shape[0] - image_size) // 2, (arr.shape[1] - image_size) // 2
    return arr[crop_y: crop_y + image_size, crop_x: crop_x + image_size]


for w, h, size in [(100, 75, 20), (131, 97, 16), (13, 21, 20), (20, 20, 20), (25, 47, 20)]:
    Image.fromarray(center_crop_arr(Image.fromarray(formula(w, h)), size)).save(OUT / f"crop_{w}x{h}_{size}.png", optimize=True)
for name, f in [("box", Image.BOX), ("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC), ("lanczos", Image.LANCZOS)]:
    Image.fromarray(formula(37, 29)).resize((16, 33), f).save(OUT / f"resize_{name}.png", optimize=True)
    plane = Image.fromarray(formula(37, 29)[..., 1].astype(np.float32))
    (OUT / f"resize_{name}.f32").write_bytes(np.asarray(plane.resize((9, 31), f)).astype("<f4").tobytes())
