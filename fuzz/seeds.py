#!/usr/bin/env python3
"""Writes the beginnings of fuzz/corpus that no test data have: small files that are accepted.

    python3 fuzz/seeds.py        (needs numpy and safetensors)
"""

import io
import json
import struct
import tomllib
from pathlib import Path

import numpy as np
from safetensors.numpy import save

HERE = Path(__file__).parent


def put(target, name, data):
    path = HERE / "corpus" / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tensors(name, metadata, **arrays):
    put("bundle", name, save({key.replace("__", "."): x for key, x in arrays.items()}, metadata))


f32 = lambda *shape: np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
about = {"config": "{}", "classes": '[{"index":0,"wnid":"a","words":"b"}]', "metrics": "{}", "provenance": "{}"}
tensors("v1", {"format": "rdpm-bundle/1", **about}, tokenizer__w=f32(2, 3), generator__b=f32(4))
tensors(
    "v2", {"format": "rdpm-bundle/2", **about},
    tokenizer__w=np.arange(6, dtype=np.int8).reshape(2, 3), tokenizer__w_scale=f32(2),
)
codes = {"format": "rdpm-codes/1", "tokenizer": "ab", "codebook_size": "16", "seed": "1"}
tensors(
    "codes", codes, codes=np.arange(16, dtype=np.uint16).reshape(2, 2, 2, 2), labels=np.array([0, 1], np.int64),
    names=np.frombuffer(b"a\nb", np.uint8), mirrored=np.array([False, True]), noise=f32(2, 2, 3, 2, 2),
    latents=f32(2, 3, 2, 2),
)
tensors("types", {}, a=np.array([1.5], np.float16), b=np.array([-1], np.int32), c=np.array(7, np.uint8), d=f32(0, 3))

state = {
    "format": "rdpm-checkpoint/1", "stage": "train-gen", "version": "0.1.0", "seed": 1, "step": 5, "finished": False,
    "epoch": 0, "position": 40, "index": 40, "images": 100, "data": "ab", "cache": None, "frozen": {"tokenizer": "cd"},
    "bad_steps": 0, "counters": {"updates": 5}, "sha256": {"model.safetensors": "ef"},
}
put("state", "state", json.dumps(state).encode())
for name in ("smoke", "imagenet256-d12"):
    text = (HERE.parent / "configs" / f"{name}.toml").read_bytes()
    lines = [line.split(b" #")[0] for line in text.splitlines() if line and not line.startswith(b"#")]
    put("state", name, b"\n".join(lines))
    put("state", f"{name}-json", json.dumps(tomllib.loads(text.decode())).encode())


def npz(name, save=np.savez, **arrays):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    put("npz", name, buffer.getvalue())


npz("statistics", mu=np.zeros(3), sigma=np.eye(3), rdpm=np.frombuffer(b"null", np.uint8))
npz("images", arr_0=np.zeros((1, 2, 2, 3), np.uint8), arr_1=np.array([3], np.int64))
npz("deflated", np.savez_compressed, a=f32(4, 4), b=np.array(["text"]), c=np.array([1, 2], ">i4"))
npz("fortran", a=np.asfortranarray(f32(2, 3)), b=np.array([True]), c=np.array([1.5], np.float16))


def npy(name, array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    put("npy", name, buffer.getvalue())


npy("u16", np.arange(8, dtype=np.uint16).reshape(2, 2, 2, 1))
npy("u32", np.arange(4, dtype=np.uint32))
npy("f32", f32(2, 3))
npy("f64", np.zeros(2))
npy("fortran", np.asfortranarray(f32(2, 3)))

# The version, which the target replaces by the program's, and no checksum, which it adds.
names = ["a/1.png", "b/2.jpg", "b/3.jpg"]
head = json.dumps({
    "version": 2, "program": "VERSION", "paths": ["/"],
    "parts": [{"is_shard": False, "found_in": [], "fields": [], "notices": [{"warns": True, "text": "t"}],
               "looked": [1, 2]}],
    "images": len(names), "names": sum(map(len, names)),
    "classes": [{"index": 0, "wnid": "a", "words": "a"}, {"index": 1, "wnid": "b", "words": "b"}],
    "summary": "3 images", "doubts": [], "passed": ["p"], "sharing": None, "fingerprint": "ab",
}).encode()
records, end = b"", 0
for name, label in zip(names, [0, 1, 1]):
    end += len(name)
    records += struct.pack("<QQQII", end, 2**64 - 1, 100, 0, label)
put("index", "three", b"rdpmindx" + struct.pack("<Q", len(head)) + head + records + "".join(names).encode())


def frame(kind, data):
    return struct.pack("<BQ", kind, len(data)) + data


HELLO, WELCOME, REFUSED, START, SUM, COPY, GATHER, BROADCAST, AGREE, BEAT, FAILED, BYE = range(1, 13)
hello = {
    "program": "rdpm-world/1", "version": "0.1.0", "token": "t", "rank": 1, "size": 2, "host": "h", "channel": "Data",
}
put("frame", "hello", frame(HELLO, json.dumps(hello).encode()))
put("frame", "start", frame(WELCOME, b"") + frame(START, b'["a","b"]'))
put("frame", "gather", frame(GATHER, struct.pack("<Q", 2) + b"ab" + struct.pack("<Q", 0)))
put("frame", "agree", frame(AGREE, b""))
put("frame", "sum", frame(SUM, np.ones(4, np.float32).tobytes()))
put("frame", "copy", frame(COPY, np.ones(4, np.float32).tobytes()))
put("frame", "beats", frame(BEAT, struct.pack("<Q", 7)) + frame(FAILED, b'{"text":"t","hint":"h","code":1}') + frame(BYE, b""))
put("frame", "refused", frame(REFUSED, "no".encode()) + frame(BROADCAST, b"x" * 9))
metrics = b"".join(
    struct.pack("<QQ", len(name), len(means)) + name + b"".join(struct.pack("<dd", *mean) for mean in means)
    for name, means in [(b"loss", [(1.5, 1.0)]), (b"loss_t", [(1.0, 2.0), (0.0, 0.0)])]
)
put("frame", "metrics", metrics)
