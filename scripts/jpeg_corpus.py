#!/usr/bin/env python3
"""Makes JPEG files of every kind that libjpeg-turbo decodes, and the digests of the pixels that Pillow reads from them.

    pip install pillow==13.0.0 numpy            # its wheel brings libjpeg-turbo 3.2.0: the reference of the decoder
    apt-get install libjpeg-turbo-progs         # cjpeg and jpegtran
    scripts/jpeg_corpus.py OUT                  # OUT/*.jpg and OUT/golden.txt
    RDPM_JPEG_CORPUS=OUT cargo test --release --lib jpeg_corpus -- --ignored
    scripts/jpeg_corpus.py --digests FOLDER     # FOLDER/golden.txt of the JPEG files that are in it already
    scripts/jpeg_corpus.py --select OUT         # the small ones that tests/data/jpeg holds, from OUT

A line of golden.txt is `sha256-of-the-RGB-bytes WIDTHxHEIGHT path`, or `refused - path` where Pillow refuses the file.
"""

import argparse
import hashlib
import itertools
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features

SELECTED = Path(__file__).resolve().parent.parent / "tests/data/jpeg"
SIZES = [(1, 1), (3, 17), (16, 16), (37, 29), (70, 51)]

# What `cargo test` decodes.
CHOSEN = """
arithmetic-1x1-1x1 baseline-1x1-2x2 progressive-1x1-2x2 lossless-1-1x1
arithmetic-3x17-2x2 baseline-3x17-2x1 progressive-3x17-2x2 separate-3x17-2x2 lossless-5-3x17 four-420-3x17
baseline-37x29-1x1 baseline-37x29-2x1 baseline-37x29-1x2 baseline-37x29-2x2 baseline-37x29-4x1 baseline-37x29-1x4
baseline-37x29-3x1 baseline-37x29-4x2 baseline-37x29-4x4 baseline-37x29-1x1-2x2-2x2 baseline-37x29-2x2-2x1-1x2
baseline-37x29-2x2-1x2-2x1 baseline-37x29-1x1-1x1-2x2 baseline-37x29-1x4-1x2-1x1 separate-37x29-2x2 separate-37x29-1x2
separate-37x29-1x1-2x2-2x2 restart-37x29-2x2 arithmetic-37x29-2x1 arithmetic-37x29-1x1-2x2-2x2
progressive-37x29-2x2 progressive-37x29-4x1 progressive-37x29-1x1-2x2-2x2 arithmetic-progressive-37x29-2x2
script-pair-37x29-2x2 script-pair_first-37x29-1x2 script-pair-arithmetic-37x29-2x2 script-spectral-37x29-2x2
script-spectral-arithmetic-37x29-2x1 script-successive-37x29-2x2 script-successive-arithmetic-37x29-1x1
script-separate_dc-37x29-2x2 script-dc_only-37x29-2x2 script-dc_only-arithmetic-37x29-1x2 script-dc_coarse-37x29-1x1
script-few_ac-37x29-2x2 script-few_ac-arithmetic-37x29-2x1 script-luma_only-37x29-2x2 script-dc_only-70x51-2x2
quality-1-37x29 quality-1-progressive-37x29 quality-100-444-37x29 quality-1-8bit-37x29 restart-1-progressive-37x29
restart-3B-37x29 restart-7B-arithmetic-37x29 restart-2-arithmetic-progressive-37x29 gray-37x29 gray-2x2-progressive-37x29
gray-1x4-restart-37x29 rgb-37x29 rgb-420-37x29 rgb-progressive-37x29 colours-ids-37x29 colours-ids-jfif-adobe0-37x29
colours-ids-adobe0-37x29 colours-ids-adobe2-37x29 colours-rgb-37x29 colours-rgb-jfif-37x29 colours-rgb-adobe1-37x29
colours-zero-37x29 colours-other-37x29 four-adobeNone-37x29 four-adobe0-37x29 four-adobe1-37x29 four-adobe2-37x29
four-jfif-adobe2-37x29 four-adobe2-progressive-37x29 four-420-37x29 ycck-420-37x29 ycck-420-restart-arithmetic-37x29
jpegtran-rotate90-37x29 pillow-420-progressive-37x29 lossless-1-37x29 lossless-2-37x29 lossless-3-37x29 lossless-4-37x29
lossless-5-37x29 lossless-6-37x29 lossless-7-37x29 lossless-gray-37x29 lossless-transform-37x29 lossless-restart-37x29
lossless-separate-37x29 lossless-four-37x29 stray-zeros-before-table-37x29 stray-bytes-before-frame-37x29
stray-bytes-before-scan-37x29 stray-marker-before-end-37x29 stray-text-between-scans-37x29 fill-bytes-before-table-37x29
fill-bytes-before-end-37x29 stray-text-after-end-37x29 two-images-37x29 thumbnail-37x29 segments-of-all-kinds-37x29
no-huffman-tables-37x29 tables-in-one-segment-37x29 tables-change-after-a-scan-37x29 tables-change-after-all-37x29
restart-interval-none-37x29 tables-2-and-3-37x29 16-bit-tables-37x29 refused-sof5-3x17 refused-sof7-3x17
refused-sof11-3x17 refused-sof14-3x17 refused-12-bit-3x17 refused-16-bit-3x17 refused-no-height-3x17
refused-two-components-3x17 refused-fractional-3x17
""".split()


# ------------------------------------------------------------------ pictures
def picture(width, height, seed=0):
    """Edges, slopes and noise, in strong colours: what clamping, smoothing and upsampling show on."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(float)
    waves = [128 + 127 * np.sin(x / (3 + c) + c) * np.cos(y / (5 - c) - c) for c in range(3)]
    image = np.stack(waves, -1) + random.normal(0, 12, (height, width, 3))
    image[(x // 9 + y // 7) % 5 == 0] = (255, 0, 30)
    image[(x + 2 * y) % 23 < 3] = (0, 250, 240)
    return np.clip(image, 0, 255).astype(np.uint8)


def netpbm(image):
    kind = b"P5" if image.ndim == 2 else b"P6"
    return kind + b"\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes()


def tool(*command, data, scans=None):
    if scans is not None:
        file = Path("/tmp") / f"scans-{hashlib.sha256(scans.encode()).hexdigest()[:12]}.txt"
        file.write_text(scans)
        command += ("-scans", file)
    done = subprocess.run([str(c) for c in command], input=data, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr.decode()}")
    return done.stdout


def cjpeg(image, *options, scans=None):
    return tool("cjpeg", *options, data=netpbm(image), scans=scans)


def jpegtran(jpeg, *options, scans=None):
    return tool("jpegtran", "-copy", "all", *options, data=jpeg, scans=scans)


# ------------------------------------------------------------------ segments
def segments(jpeg):
    """[(marker, payload, entropy-coded bytes that follow)], SOI and EOI left out."""
    found, at = [], 2
    while True:
        assert jpeg[at] == 0xFF
        marker = jpeg[at + 1]
        if marker == 0xD9:
            return found
        length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
        payload, at = jpeg[at + 4 : at + 2 + length], at + 2 + length
        start = at
        if marker == 0xDA:
            while jpeg[at] != 0xFF or jpeg[at + 1] == 0 or 0xD0 <= jpeg[at + 1] <= 0xD7:
                at += 1
        found.append((marker, payload, jpeg[start:at]))


def joined(parts):
    parts = [bytes([0xFF, m]) + (len(p) + 2).to_bytes(2, "big") + p + data for m, p, data in parts]
    return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"


def index(parts, *markers):
    return next(i for i, (marker, _, _) in enumerate(parts) if marker in markers)


def app14(transform):
    return (0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]), b"")


def marked(jpeg, jfif=True, adobe=None, ids=None):
    """With and without the two markers that colours are told by, and with other component ids."""
    parts = [p for p in segments(jpeg) if p[0] not in (0xE0, 0xEE)]
    head = [(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0", b"")] if jfif else []
    head += [app14(adobe)] if adobe is not None else []
    if ids:
        old = {}
        for i, (marker, payload, data) in enumerate(parts):
            payload = bytearray(payload)
            if marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
                for c, new in enumerate(ids):
                    old[payload[6 + 3 * c]] = new
                    payload[6 + 3 * c] = new
            if marker == 0xDA:
                for c in range(payload[0]):
                    payload[1 + 2 * c] = old[payload[1 + 2 * c]]
            parts[i] = (marker, bytes(payload), data)
    return joined(head + parts)


def scan_script(*scans):
    return "\n".join(f"{scan};" for scan in scans) + "\n"


SEPARATE = scan_script("0", "1", "2")
PAIR = scan_script("0", "1 2")
PAIR_FIRST = scan_script("0 2", "1")
SPECTRAL = scan_script("0 1 2: 0-0, 0, 0", *(f"{c}: {a}-{b}, 0, 0" for c in range(3) for a, b in [(1, 5), (6, 63)]))
SUCCESSIVE = scan_script(
    "0 1 2: 0-0, 0, 3", *(f"{c}: 1-63, 0, 3" for c in range(3)), "0 1 2: 0-0, 3, 2", "0 1 2: 0-0, 2, 1",
    *(f"{c}: 1-63, {a}, {a - 1}" for c in (1, 0, 2) for a in (3, 2, 1)), "0 1 2: 0-0, 1, 0")
SEPARATE_DC = scan_script(*(f"{c}: 0-0, 0, 0" for c in range(3)), *(f"{c}: 1-63, 0, 0" for c in range(3)))
# Files that end early but whole: libjpeg smooths their blocks.
DC_ONLY = scan_script("0 1 2: 0-0, 0, 0")
DC_COARSE = scan_script("0 1 2: 0-0, 0, 1")
FEW_AC = scan_script("0 1 2: 0-0, 0, 0", "0: 1-2, 0, 1", "1: 1-5, 0, 2")
LUMA_ONLY = scan_script("0 1 2: 0-0, 0, 0", "0: 1-63, 0, 0")


def lossless(image, predictor, transform=0, restart=0, ids=None, interleaved=True):
    """SOF3: what libjpeg-turbo 3 writes by `cjpeg -lossless`, which older ones lack. One table, categories 0 to 16."""
    planes = image.reshape(image.shape[0], image.shape[1], -1).astype(int)
    height, width, count = planes.shape
    ids = ids or list(range(1, count + 1))
    frame = bytes([8]) + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bytes([count])
    frame += b"".join(bytes([i, 0x11, 0]) for i in ids)
    counts = [0, 0, 0, 0, 17] + [0] * 11
    parts = [(0xC3, frame, b""), (0xC4, bytes([0] + counts + list(range(17))), b"")]
    if restart:
        parts.append((0xDD, (restart * width).to_bytes(2, "big"), b""))
    for members in [range(count)] if interleaved else [[c] for c in range(count)]:
        rows = []
        for y in range(height):
            first = y % restart == 0 if restart else y == 0
            for x, c in itertools.product(range(width), members):
                p = planes[..., c]
                a = p[y, x - 1] if x else None
                b, d = (p[y - 1, x], p[y - 1, x - 1] if x else None) if not first else (None, None)
                if first:
                    guess = 128 >> transform if x == 0 else a >> transform
                elif x == 0:
                    guess = b >> transform
                else:
                    a, b, d = a >> transform, b >> transform, d >> transform
                    guess = [0, a, b, d, a + b - d, a + ((b - d) >> 1), b + ((a - d) >> 1), (a + b) >> 1][predictor]
                rows.append((y, ((p[y, x] >> transform) - guess + 32768) % 65536 - 32768))
        data, bits, number = bytearray(), "", 0

        def flush(bits):
            bits += "1" * (-len(bits) % 8)
            for i in range(0, len(bits), 8):
                byte = int(bits[i : i + 8], 2)
                data.extend([byte, 0] if byte == 0xFF else [byte])

        last = 0
        for y, difference in rows:
            if restart and y != last and y % restart == 0:
                flush(bits)
                bits = ""
                data.extend([0xFF, 0xD0 + number % 8])
                number += 1
            last = y
            category = int(abs(difference)).bit_length()
            bits += f"{category:05b}"
            if 0 < category < 16:
                bits += f"{difference if difference > 0 else difference + (1 << category) - 1:0{category}b}"
        flush(bits)
        head = bytes([len(members)]) + b"".join(bytes([ids[c], 0]) for c in members)
        parts.append((0xDA, head + bytes([predictor, 0, transform]), bytes(data)))
    return joined(parts)


# -------------------------------------------------------------------- corpus
def corpus():
    """(name, bytes) of every file."""
    samplings = ["1x1", "2x1", "1x2", "2x2", "4x1", "1x4", "4x2", "2x4", "3x1", "1x3", "3x2", "2x3", "3x3", "4x4"]
    mixed = ["1x1,2x2,2x2", "2x2,2x1,1x2", "2x2,1x2,2x1", "1x2,2x1,1x1", "2x1,2x2,1x1", "4x1,2x1,1x1", "2x2,2x2,1x1",
             "1x1,1x1,2x2", "4x2,1x1,2x2", "3x1,1x1,3x1", "1x1,3x1,1x1", "2x2,1x1,1x1", "1x4,1x2,1x1", "4x4,2x2,1x1"]
    scripts = dict(separate=SEPARATE, pair=PAIR, pair_first=PAIR_FIRST, spectral=SPECTRAL, successive=SUCCESSIVE,
                   separate_dc=SEPARATE_DC, dc_only=DC_ONLY, dc_coarse=DC_COARSE, few_ac=FEW_AC, luma_only=LUMA_ONLY)
    # More than ten blocks do not fit into one MCU, so such a file must keep its components apart.
    wide = lambda s: sum(int(f[0]) * int(f[2]) for f in (s.split(",") + ["1x1"] * 2)[:3]) > 10

    for width, height in SIZES:
        image = picture(width, height)
        size = f"{width}x{height}"
        for sampling in samplings + mixed:
            name = f"{size}-{sampling.replace(',', '-')}"
            options = ("-sample", sampling, "-quality", 88)
            script = SEPARATE if wide(sampling) else None
            yield f"baseline-{name}", cjpeg(image, *options, scans=script)
            yield f"arithmetic-{name}", cjpeg(image, *options, "-arithmetic", scans=script)
            if wide(sampling):
                continue
            yield f"progressive-{name}", cjpeg(image, *options, "-progressive")
            yield f"arithmetic-progressive-{name}", cjpeg(image, *options, "-arithmetic", "-progressive")
            yield f"separate-{name}", cjpeg(image, *options, scans=SEPARATE)
            yield f"restart-{name}", cjpeg(image, *options, "-restart", "1B", "-optimize")
        for sampling in ["1x1", "2x1", "1x2", "2x2", "4x1", "1x1,2x2,2x2"]:
            for what, script in scripts.items():
                for coder in [(), ("-arithmetic",)]:
                    name = f"script-{what}{''.join(coder)}-{size}-{sampling.replace(',', '-')}"
                    yield name, cjpeg(image, "-sample", sampling, *coder, scans=script)
        for quality in [1, 5, 30, 60, 75, 95, 100]:
            yield f"quality-{quality}-{size}", cjpeg(image, "-quality", quality)
            yield f"quality-{quality}-444-{size}", cjpeg(image, "-quality", quality, "-sample", "1x1")
            yield f"quality-{quality}-progressive-{size}", cjpeg(image, "-quality", quality, "-progressive")
        yield f"quality-1-8bit-{size}", cjpeg(image, "-quality", 1, "-baseline")
        for coder in [(), ("-progressive",), ("-arithmetic",), ("-arithmetic", "-progressive")]:
            kind = "".join(coder)
            for restart in ["1", "2", "3B", "7B"]:
                yield f"restart-{restart}{kind}-{size}", cjpeg(image, *coder, "-restart", restart)
            yield f"gray{kind}-{size}", cjpeg(image, "-grayscale", *coder)
            yield f"gray-2x2{kind}-{size}", cjpeg(image[..., 1].copy(), "-sample", "2x2", *coder)
            yield f"gray-1x4-restart{kind}-{size}", cjpeg(image[..., 1].copy(), "-sample", "1x4", "-restart", "2B", *coder)
            yield f"rgb{kind}-{size}", cjpeg(image, "-rgb", *coder)
            yield f"rgb-420{kind}-{size}", cjpeg(image, "-rgb", "-sample", "2x2", *coder)
            # Colours by marker or by component ids.
            base = cjpeg(image, "-sample", "1x1" if coder else "2x1", *coder)
            ycc = dict(ids=(1, 2, 3), zero=(0, 1, 2), rgb=tuple(b"RGB"), other=(7, 9, 200), small=tuple(b"rgb"))
            for (who, ids), jfif, adobe in itertools.product(ycc.items(), [True, False], [None, 0, 1, 2]):
                if coder and adobe == 2:
                    continue
                name = f"colours-{who}{'-jfif' if jfif else ''}{f'-adobe{adobe}' if adobe is not None else ''}{kind}-{size}"
                yield name, marked(base, jfif, adobe, ids)
            # Four components.
            k = np.minimum(255, image[..., :1] // 3 + 40)
            b = BytesIO()
            Image.fromarray(np.concatenate([image, k], -1), "CMYK").save(b, "JPEG", quality=90)
            four = jpegtran(b.getvalue(), *coder)
            for adobe in [None, 0, 1, 2]:
                yield f"four-adobe{adobe}{kind}-{size}", marked(four, False, adobe)
                yield f"four-jfif-adobe{adobe}{kind}-{size}", marked(four, True, adobe)
            b = BytesIO()
            Image.fromarray(np.concatenate([image, k], -1), "CMYK").save(b, "JPEG", quality=80, subsampling="4:2:0")
            yield f"four-420{kind}-{size}", jpegtran(b.getvalue(), *coder)
            yield f"ycck-420{kind}-{size}", marked(jpegtran(b.getvalue(), *coder), False, 2)
            yield f"ycck-420-restart{kind}-{size}", marked(jpegtran(b.getvalue(), *coder, "-restart", "1"), False, 2)

        # Lossless transforms of others.
        jpeg = cjpeg(image, "-quality", 85, "-sample", "2x1")
        for what in [("-rotate", "90"), ("-flip", "vertical"), ("-transpose",), ("-grayscale",), ("-optimize",)]:
            yield f"jpegtran{''.join(what)}-{size}", jpegtran(jpeg, *what)
            yield f"jpegtran{''.join(what)}-progressive-{size}", jpegtran(jpeg, *what, "-progressive")
        for subsampling, progressive in itertools.product(["4:4:4", "4:2:2", "4:2:0"], [False, True]):
            b = BytesIO()
            Image.fromarray(image).save(b, "JPEG", quality=77, subsampling=subsampling, progressive=progressive,
                                        optimize=progressive, comment="with a comment", dpi=(72, 300))
            yield f"pillow-{subsampling.replace(':', '')}{'-progressive' if progressive else ''}-{size}", b.getvalue()

        # Lossless coding, which libjpeg-turbo 3 decodes.
        if width < 50:
            for predictor in range(1, 8):
                yield f"lossless-{predictor}-{size}", lossless(image, predictor)
            yield f"lossless-gray-{size}", lossless(image[..., 0], 4)
            yield f"lossless-transform-{size}", lossless(image, 5, transform=2)
            yield f"lossless-restart-{size}", lossless(image, 6, restart=2)
            yield f"lossless-separate-{size}", lossless(image, 7, interleaved=False)
            yield f"lossless-rgb-{size}", lossless(image, 1, ids=list(b"RGB"))
            yield f"lossless-four-{size}", lossless(np.concatenate([image, image[..., :1]], -1), 2)

        yield from irregular(image, size)


def irregular(image, size):
    """What encoders of other makes, cameras and broken programs write."""
    jpeg = cjpeg(image, "-quality", 90, "-restart", "1")
    whole = segments(jpeg)
    table, frame, scan = index(whole, 0xDB), index(whole, 0xC0), index(whole, 0xDA)

    def between(at, stray):
        return joined(whole[:at])[:-2] + stray + joined(whole[at:])[2:]

    for where, at in dict(table=table, frame=frame, scan=scan).items():
        yield f"stray-zeros-before-{where}-{size}", between(at, b"\0\0\0")
        yield f"stray-bytes-before-{where}-{size}", between(at, b"\x12\xff\0\x34")
        yield f"fill-bytes-before-{where}-{size}", between(at, b"\xff\xff\xff")
    for what, tail in dict(zeros=b"\0\0", text=b"\r\n", marker=b"\x07\x08").items():
        yield f"stray-{what}-before-end-{size}", jpeg[:-2] + tail + b"\xff\xd9"
        yield f"stray-{what}-after-end-{size}", jpeg + tail
        progressive = segments(cjpeg(image, "-progressive"))
        late = [i for i, p in enumerate(progressive) if p[0] == 0xDA][3]
        m, p, data = progressive[late]
        yield f"stray-{what}-between-scans-{size}", joined(progressive[:late] + [(m, p, data + tail)] + progressive[late + 1 :])
    yield f"fill-bytes-before-end-{size}", jpeg[:-2] + b"\xff\xff\xff\xd9"
    yield f"two-images-{size}", jpeg + cjpeg(255 - image)
    yield f"thumbnail-{size}", joined([(0xE1, b"Exif\0\0" + cjpeg(image[::2, ::2].copy()), b"")] + whole)
    yield f"segments-of-all-kinds-{size}", joined([(m, bytes(range(9)), b"") for m in [*range(0xE1, 0xF0), 0xFE]] + whole)
    # Tables: none at all (motion JPEG), all in one segment, one again before each scan, changed between scans.
    yield f"no-huffman-tables-{size}", joined([p for p in segments(cjpeg(image)) if p[0] != 0xC4])
    merged = {m: b"".join(p for k, p, _ in whole if k == m) for m in (0xDB, 0xC4)}
    rest = [p for p in whole if p[0] not in merged]
    yield f"tables-in-one-segment-{size}", joined([(m, p, b"") for m, p in merged.items()] + rest)
    separate = segments(cjpeg(image, "-quality", 60, scans=SEPARATE))
    scans = [i for i, p in enumerate(separate) if p[0] == 0xDA]
    other = segments(cjpeg(image, "-quality", 20))
    tables = [p for p in other if p[0] == 0xDB]
    yield f"tables-change-after-a-scan-{size}", joined(separate[: scans[1]] + tables + separate[scans[1] :])
    yield f"tables-change-after-all-{size}", joined(separate + tables)
    yield f"restart-interval-goes-{size}", joined(
        separate[: scans[0]] + [(0xDD, b"\0\0", b"")] + separate[scans[0] :])
    zero_interval = segments(cjpeg(image, "-restart", "0"))
    yield f"restart-interval-none-{size}", joined([(0xDD, b"\0\0", b"")] + zero_interval)
    # A component's table may be any of four.
    slots = cjpeg(image, "-qslots", "0,1,1")
    parts = segments(slots)
    at = index(parts, 0xC0)
    payload = bytearray(parts[at][1])
    payload[8 + 3], payload[8 + 6] = 3, 2
    second = next(p for m, p, _ in parts if m == 0xDB and p[0] == 1)
    parts[at:at + 1] = [(0xDB, b"\3" + second[1:], b""), (0xDB, b"\2" + bytes(64 * [9]), b""), (0xC0, bytes(payload), b"")]
    yield f"tables-2-and-3-{size}", joined(parts)
    wide = [(m, bytes([p[0] | 0x10]) + b"".join(b"\0" + p[i : i + 1] for i in range(1, 65)) if m == 0xDB else p, d) for m, p, d in whole]
    yield f"16-bit-tables-{size}", joined(wide)
    # Not decoded by libjpeg-turbo or by Pillow: to be refused by name.
    for what, marker in dict(sof5=0xC5, sof6=0xC6, sof7=0xC7, sof11=0xCB, sof13=0xCD, sof14=0xCE, sof15=0xCF).items():
        yield f"refused-{what}-{size}", joined([(marker if m == 0xC0 else m, p, d) for m, p, d in whole])
    precise = lambda bits: joined([(m, bytes([bits]) + p[1:] if m == 0xC0 else p, d) for m, p, d in whole])
    yield f"refused-12-bit-{size}", precise(12)
    yield f"refused-16-bit-{size}", precise(16)
    m, p, d = whole[frame]
    yield f"refused-no-height-{size}", joined(whole[:frame] + [(m, p[:1] + b"\0\0" + p[3:], d)] + whole[frame + 1 :])
    third = segments(cjpeg(image, "-sample", "3x1", scans=SEPARATE))
    at = index(third, 0xC0)
    third[at] = (0xC0, third[at][1][:10] + bytes([0x21]) + third[at][1][11:], b"")
    yield f"refused-fractional-{size}", joined(third)
    two = bytes([8]) + p[1:5] + bytes([2, 1, 0x11, 0, 2, 0x11, 0])
    yield f"refused-two-components-{size}", joined(whole[:frame] + [(m, two, d)] + whole[frame + 1 :])


# ------------------------------------------------------------------- digests
def digest(path):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rgb = Image.open(path).convert("RGB")
    except Exception:
        return "refused -"
    return f"{hashlib.sha256(rgb.tobytes()).hexdigest()} {rgb.width}x{rgb.height}"


def write_digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    lines = [f"{digest(path)} {path.relative_to(folder)}\n" for path in files]
    (folder / "golden.txt").write_text("".join(lines))
    refused = sum(line.startswith("refused") for line in lines)
    print(f"{len(lines)} files, {refused} of them refused by Pillow {PIL.__version__}, "
          f"libjpeg-turbo {features.version_feature('libjpeg_turbo')}")


def select(corpus):
    SELECTED.mkdir(parents=True, exist_ok=True)
    for name in CHOSEN:
        (SELECTED / f"{name}.jpg").write_bytes((corpus / f"{name}.jpg").read_bytes())
    write_digests(SELECTED)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--digests", action="store_true", help="of the files that are there")
    parser.add_argument("--select", action="store_true", help="copy what tests/data/jpeg holds")
    args = parser.parse_args()
    if args.select:
        select(args.folder)
    else:
        if not args.digests:
            args.folder.mkdir(parents=True, exist_ok=True)
            for name, jpeg in corpus():
                (args.folder / f"{name}.jpg").write_bytes(jpeg)
        write_digests(args.folder)


if __name__ == "__main__":
    sys.exit(main())
