"""Makes tests/data/weights: what torch.save writes, in both formats, and files that must be refused.

    python3 scripts/weights_testdata.py        (PyTorch; from the repository's root)
"""
import collections, io, os, pickle, sys, types, zipfile
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


class Evil:
    def __reduce__(self): return os.system, ("touch rdpm-pickle-ran",)


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
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sequential(torch.nn.Linear(3, 2)))
    for p in net.parameters(): p.data = torch.arange(float(p.numel())).view_as(p).half()
    net.register_buffer("scale", torch.tensor(224))
    torch.jit.script(net).save(f"{OUT}/script.pt")


main()
