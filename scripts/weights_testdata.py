"""Makes tests/data/weights: what torch.save writes, in both formats, and files that must be refused.

    python3 scripts/weights_testdata.py        (PyTorch; from the repository's root)
"""
import argparse, collections, datetime, os, pathlib, sys, types
import numpy as np
import torch

OUT = "tests/data/weights"


def state():
    """Values are counted up, so that a test knows them; views share storages."""
    grid = torch.arange(24, dtype=torch.float32)
    return collections.OrderedDict(
        f32=grid.view(2, 3, 4),
        offset=grid[6:12].view(2, 3),
        transposed=grid[:6].view(2, 3).t(),
        permuted=grid.view(2, 3, 4).permute(2, 0, 1),
        column=grid.view(6, 4)[:, 1],
        expanded=grid[3:5].view(2, 1).expand(2, 3),
        f64=torch.arange(3, dtype=torch.float64),
        f16=torch.arange(3).half(),
        bf16=torch.arange(3).bfloat16(),
        i32=torch.arange(-1, 2, dtype=torch.int32),
        i64=torch.tensor(7),
        bool=torch.tensor([True, False]),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.arange(2.0)),
    )


def checkpoint():
    """As Lightning writes one: taming-transformers' last.ckpt."""
    module = types.ModuleType("pytorch_lightning.callbacks")
    class ModelCheckpoint:
        def __init__(self): self.best = 0.5
    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = module.__name__, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint
    sys.modules["pytorch_lightning"], sys.modules[module.__name__] = types.ModuleType("pytorch_lightning"), module
    norm = torch.nn.BatchNorm2d(2)
    optimizer = torch.optim.Adam(norm.parameters())
    norm(torch.randn(1, 2, 3, 3)).sum().backward(); optimizer.step()
    return dict(epoch=3, global_step=torch.tensor(5), callbacks={ModelCheckpoint: dict(object=ModelCheckpoint())},
                optimizer_states=[optimizer.state_dict()], state_dict=torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), norm).state_dict())


def plain():
    """A state dict among every plain thing that people keep beside one; torch.load(weights_only=True) takes most of it."""
    numbers = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
               "float16", "float32", "float64", "complex64", "complex128", "datetime64[s]", "timedelta64[ns]", "<U3", "S3"]
    attributed = torch.arange(3.0); attributed.note = "an attribute"
    parameter = torch.nn.Parameter(torch.arange(2.0)); parameter.note = "an attribute"
    return dict(
        state_dict=collections.OrderedDict(
            w=torch.arange(6.0).view(2, 3), attributed=attributed, parameter=parameter),
        scalars=[np.zeros((), name)[()] for name in numbers],
        arrays=[np.zeros((2, 3), name) for name in numbers] + [np.asfortranarray(np.ones((2, 3)))],
        record=np.zeros(2, [("a", "<f4"), ("b", "<i8", (2,))]),
        random=np.random.RandomState(1).get_state(),
        best_fid=np.float64(3.2), raw=b"\x80abc", none=b"", array=bytearray(b"\xff\x00"),
        sets=[{1, "a"}, frozenset([2.5])], counter=collections.Counter("hello"),
        lists=collections.defaultdict(list, {"a": [1]}), nested=collections.defaultdict(dict), queue=collections.deque([1, 2], 3),
        size=torch.Size([1, 2]), device=torch.device("cuda", 1), dtype=torch.bfloat16, layout=torch.sparse_coo, scheme=torch.per_tensor_affine,
        many=(1 << 80, -(1 << 70), 2 ** 31, -1, 1e300, float("nan"), 1 + 2j, None, True, (), [], {}),
        range=range(3), slice=slice(1, None), text="\u00e9\U0001f600\ud800",
        args=argparse.Namespace(lr=1e-4, path=pathlib.PurePosixPath("/a/b")), time=datetime.datetime(2020, 1, 2),
        version=torch.torch_version.TorchVersion("2.11"), rng=torch.get_rng_state()[:8],
        optimizer={"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]},
    )


def elements():
    """Two numbers of every type of elements."""
    names = ["int8", "int16", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "bool", "uint8", "bfloat16"]
    return {name: torch.tensor([1, 3]).to(getattr(torch, name)) for name in names}


def averaged():
    """As DiT writes one: the weights, their moving average, the optimizer."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward(); optimizer.step()
    named = lambda value: {name: torch.full_like(p, value).detach() for name, p in model.named_parameters()}
    return dict(model=named(1.0), ema=named(2.0), opt=optimizer.state_dict(), train_steps=7)


def beside():
    """A network beside its optimizer, with buffers of kinds that are not read."""
    moments = {"state": {0: {"exp_avg": torch.zeros(2)}}}
    return dict(optimizer=moments, generator=dict(
        w=torch.arange(2.0), freqs_cis=torch.ones(2, dtype=torch.complex64), mask=torch.eye(2).to_sparse()))


class Evil:
    def __reduce__(self): return os.system, ("touch rdpm-pickle-ran",)


def distributed(w):
    """A tensor of which every process holds a part; here one process holds all of it."""
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    torch.save({"w": distribute_tensor(w, mesh, [Shard(0)])}, f"{OUT}/dtensor.pth")
    dist.destroy_process_group()


def main():
    os.makedirs(OUT, exist_ok=True)
    save = lambda what, name, **kw: torch.save(what, f"{OUT}/{name}", **kw)
    old = dict(_use_new_zipfile_serialization=False)
    save(state(), "zip.pth"); save(state(), "legacy.pth", **old)
    save(checkpoint(), "lightning.ckpt"); save(checkpoint(), "lightning-legacy.ckpt", **old)
    save({"a": Evil(), "w": torch.ones(1)}, "evil.pth"); save({"a": Evil(), "w": torch.ones(1)}, "evil-legacy.pth", **old)
    save([torch.ones(1)], "list.pth")
    save(torch.nn.Linear(1, 1), "module.pth")
    save({"w": torch.ones(1, dtype=torch.complex64)}, "complex.pth")
    save(plain(), "plain.pth"); save(plain(), "plain-legacy.pth", **old); save(plain(), "plain-5.pth", pickle_protocol=5)
    save(elements(), "elements.pth"); save(elements(), "elements-legacy.pth", **old)
    w = torch.eye(2)
    save({"w": w.to_sparse()}, "sparse.pth"); save({"w": w.to_sparse_csr()}, "sparse-csr.pth")
    save({"w": torch.quantize_per_tensor(w, 0.5, 0, torch.qint8)}, "quantized.pth"); save({"w": w.to("meta")}, "meta.pth")
    save({"w": torch.nested.nested_tensor([w, w[:1]])}, "nested.pth")
    save({"w": w.to(torch.float8_e5m2fnuz)}, "fnuz.pth")
    save({"generator": {"w": w}, "discriminator": {"w": w}}, "two.pth")
    save(averaged(), "averaged.pth"); save(beside(), "beside.pth"); save(beside(), "beside-legacy.pth", **old)
    save({"net": {"a": {"module": {"state_dict": {"module._orig_mod.w": w}}}}, "epoch": 3}, "nests.pth")
    distributed(w)
    with open(f"{OUT}/allowed-globals.txt", "w") as file:
        file.writelines(name + "\n" for name in sorted(torch._weights_only_unpickler._get_allowed_globals()))
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sequential(torch.nn.Linear(3, 2)))
    for p in net.parameters(): p.data = torch.arange(float(p.numel())).view_as(p).half()
    net.register_buffer("scale", torch.tensor(224))
    torch.jit.script(net).save(f"{OUT}/script.pt")


main()
