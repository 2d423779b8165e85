#!/usr/bin/env python3
"""Makes tests/data/shards/{members,labels}.json and the tars they describe.

members.json: what Python's tarfile reads of tars in every form that GNU tar and tarfile write (names, SHA-256 of the
bytes). labels.json: the samples that webdataset makes of shards (key, the field that is the image, the class).

    python scripts/test_shards.py        # needs GNU tar; webdataset for labels.json
"""

import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
import tempfile
from pathlib import Path

SHARDS = Path(__file__).parent.parent / "tests/data/shards"
tarfile.RECORDSIZE = 1024  # Without padding to a tape's record.


def gnu_tar(name, folder, files, *options):
    command = ["tar", "-cf", SHARDS / name, "--sort=name", "--owner=0", "--group=0", "--mtime=@0", "--blocking-factor=1"]
    subprocess.run([*command, *options, "-C", folder, *files], check=True)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def with_holes(path, pieces, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for at, content in pieces:
            file.seek(at)
            file.write(content)
        file.truncate(size)


def forms(folder):
    """One tree in every form of names and types."""
    noise = random.Random(0)
    short, long = "n01/a.jpg", "/".join(["folder" * 9] * 5) + "/" + "name" * 24 + ".jpg"
    middle = "/".join(["middle" * 8] * 3) + "/b.jpg"
    for name in (short, middle, long, "n02/ü.jpg"):
        write(folder / name, noise.randbytes(noise.randrange(1, 1200)))
    write(folder / "n02/empty.jpg", b"")
    gnu_tar("v7.tar", folder, ["n01"], "--format=v7")
    gnu_tar("ustar.tar", folder, ["n01", "n02", middle], "--format=ustar")
    gnu_tar("gnu_long.tar", folder, ["."], "--format=gnu")
    gnu_tar("pax_long.tar", folder, ["."], "--format=posix")
    os.link(folder / long, folder / "n01/hard.jpg")
    os.symlink("../n02/ü.jpg", folder / "n01/soft.jpg")
    os.symlink("soft.jpg", folder / "n01/soft_to_soft.jpg")
    os.symlink("/nowhere/x.jpg", folder / "n01/dangling.jpg")
    gnu_tar("links_gnu.tar", folder, ["."], "--format=gnu")
    gnu_tar("links_pax.tar", folder, ["."], "--format=posix")


def sparse(folder):
    noise = random.Random(1)
    with_holes(folder / "n01/few.jpg", [(0, noise.randbytes(700)), (65536, noise.randbytes(300))], 70000)
    pieces = [(at, noise.randbytes(100)) for at in range(8192, 8192 * 28, 8192)]
    with_holes(folder / "n01/many.jpg", pieces, 8192 * 29)
    write(folder / "n02/whole.jpg", noise.randbytes(600))
    options = {"gnu": ["--format=gnu"]}
    for version in ("0.0", "0.1", "1.0"):
        options[f"pax_{version}"] = ["--format=posix", f"--sparse-version={version}"]
    for name, form in options.items():
        gnu_tar(f"sparse_{name}.tar" if name != "gnu" else "sparse_gnu_many.tar", folder, ["n01", "n02"], "-S", *form)


def by_tarfile():
    def add(tar, name, content, **fields):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        for field, value in fields.items():
            setattr(member, field, value)
        tar.addfile(member, io.BytesIO(content))

    with tarfile.open(SHARDS / "contiguous.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        add(tar, "n01/a.jpg", b"first", type=tarfile.CONTTYPE)
        add(tar, "n01/b.jpg", b"second" * 200, type=tarfile.CONTTYPE)
    headers = {"comment": "a commit", "mtime": "0"}
    with tarfile.open(SHARDS / "pax_global.tar", "w", format=tarfile.PAX_FORMAT, pax_headers=headers) as tar:
        add(tar, "n01/a\nb.jpg", b"a line's end in its name", pax_headers={"path": "n01/a\nb.jpg"})
        add(tar, "n01/size.jpg", b"its size in a record", pax_headers={"size": "20"})
        add(tar, "n02/b.jpg", b"last")


def members(path):
    """Every file by its name, links as the file they lead to."""
    found = []
    with tarfile.open(path) as tar:
        for member in tar:
            if not (member.isreg() or member.issym() or member.islnk()):
                continue
            name = member.name.removeprefix("./")
            try:
                content = tar.extractfile(member).read()
            except KeyError:
                continue
            found.append([name, hashlib.sha256(content).hexdigest()])
    return found


def samples(path):
    """webdataset's samples: key, its fields, and the class as its decoders give it."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    found = []
    with open(path, "rb") as stream:
        files = ({**file, "__url__": str(path)} for file in tar_file_iterator(stream))
        for sample in group_by_keys(files):
            fields = sorted(field for field in sample if not field.startswith("__"))
            label = None
            if "cls" in sample:
                label = int(sample["cls"])
            elif "json" in sample:
                label = json.loads(sample["json"]).get("label")
            found.append([sample["__key__"], fields, label])
    return found


def main():
    for make in (forms, sparse):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder))
    by_tarfile()
    tars = sorted(SHARDS.glob("*.tar"))
    expected = {tar.name: members(tar) for tar in tars if tar.name != "concat.tar"}
    (SHARDS / "members.json").write_text(json.dumps(expected, indent=1) + "\n")
    labelled = ["cls_txt.tar", "cls_upper.tar", "json_nan.tar", "onebased.tar", "txt.tar"]
    expected = {name: samples(SHARDS / name) for name in labelled}
    (SHARDS / "labels.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
