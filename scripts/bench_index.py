#!/usr/bin/env python3
"""Times how a large data set is opened: looked through for the first time, and by its index.

    scripts/bench_index.py target/release/rdpm FOLDER [--files 1280000 | --shards 1000]

In FOLDER (which must not exist, and is removed again) it makes 1,000 class folders of small files, or sparse tar shards of 1,280
members. As root the kernel's caches are emptied before what is called cold; else the figure says warm. Memory is the largest RssAnon
seen: what the process has for itself, without the mapped index, which processes share.
"""

import argparse
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

CLASSES = 1000
MEMBERS = 1280
SIZE = 100 << 10


def files(folder, count):
    for c in range(CLASSES):
        path = folder / f"n{c:08d}"
        path.mkdir(parents=True)
        opened = os.open(path, os.O_RDONLY)
        for i in range(count // CLASSES):
            file = os.open(f"n{c:08d}_{i}.JPEG", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=opened)
            os.write(file, b"x" * 100)
            os.close(file)
        os.close(opened)
    return [str(folder)]


def shards(folder, count):
    folder.mkdir(parents=True)
    for s in range(count):
        with open(folder / f"train-{s:04d}.tar", "wb") as file:
            for i in range(MEMBERS):
                member = tarfile.TarInfo(f"n{(s + i) % CLASSES:08d}/{s}_{i}.JPEG")
                member.size = SIZE
                file.seek(i * (512 + SIZE))
                file.write(member.tobuf(tarfile.USTAR_FORMAT))
            file.seek(MEMBERS * (512 + SIZE))
            file.write(bytes(10240))
    return [str(folder / "*.tar")]


def empty_caches():
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return "cold"
    except OSError:
        return "warm"


def timed(name, command, environment):
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    memory = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            memory = max([memory] + [int(line.split()[1]) for line in lines if line.startswith("RssAnon")])
        except (OSError, ValueError):
            pass
        time.sleep(0.005)
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise SystemExit(process.stderr.read())
    print(f"{name}: {seconds:.2f} s, {memory / 1024:.0f} MB of its own", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rdpm")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=1_280_000)
    parser.add_argument("--shards", type=int)
    parser.add_argument("--keep", action="store_true", help="take FOLDER as it is, and leave it there")
    args = parser.parse_args()
    data = args.folder / "data"
    if args.keep and data.exists():
        given = [str(data / "*.tar")] if args.shards else [str(data)]
    else:
        given = shards(data, args.shards) if args.shards else files(data, args.files)
    environment = dict(os.environ, XDG_CACHE_HOME=str(args.folder / "cache"))
    shutil.rmtree(args.folder / "cache", ignore_errors=True)
    index = [args.rdpm, "index", *given]
    start = [args.rdpm, "train-vae", "--config", "smoke", "--dry-run", "--data", *given]
    try:
        timed(f"first index, {empty_caches()}", index, environment)
        timed("first index, from memory", [args.rdpm, "index", "--refresh", *given], environment)
        timed(f"later start, {empty_caches()}", start, environment)
        for _ in range(3):
            timed("later start, from memory", start, environment)
    finally:
        if not args.keep:
            shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
