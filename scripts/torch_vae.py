"""The tokenizer's training step as a skilled PyTorch user would write it for one Hopper GPU; exactly the model of rdpm_ref.py.

bf16 NHWC throughout with f32 master weights in one flat buffer, Triton norms (torch_kernels.py), 1×1 convolutions as matmuls, attention as
matmuls, thin layers padded to 8 channels, LPIPS and the discriminator on real and fake images in one batch, one pass of the discriminator over
the fakes for both of its uses, both weight gradients of conv_out in one call, and the third as their sum. `features` chooses how encoder and
decoder run: custom autograd functions with everything fused that Triton can fuse ("triton"), or torch.compile over the norm as an operator.
"""
import functools
import torch
import torch.nn.functional as F
import torch_kernels as k

CL = torch.channels_last


class Flat:
    """A module's parameters as views of one flat f32 buffer (master, gradient, average), or, but for those to `keep` in f32, of its copy in `dtype`."""

    def __init__(self, module, dtype, keep):
        params = list(module.named_parameters())
        offsets, total = [], 0
        for _, p in params:
            offsets.append(total)
            total += (p.numel() + 63) // 64 * 64
        dev = params[0][1].device
        self.w, self.g = torch.zeros(total, device=dev), torch.zeros(total, device=dev)
        self.h = torch.zeros(total, device=dev, dtype=dtype)
        self.params, self.views = [], []
        for (name, p), o in zip(params, offsets):
            def view(flat):
                return flat[o:o + p.numel()].as_strided(p.size(), p.stride(), o)
            view(self.w).copy_(p.data)
            self.views.append(view(self.g))
            p.data = view(self.w) if dtype == torch.float32 or keep(name, p) else view(self.h)
            self.params.append(p)
        self.h.copy_(self.w)
        self.ema = self.w.clone()

    def gather(self, grads):
        torch._foreach_copy_(self.views, grads)

    def update(self, opt, decay=None):
        opt.step()
        self.h.copy_(self.w)
        if decay is not None:
            self.ema.lerp_(self.w, 1 - decay)

    def adam(self, lr=4e-5):
        self.w.grad = self.g
        gpu = self.w.is_cuda
        return torch.optim.Adam([self.w], lr, betas=(0.5, 0.9), fused=gpu, capturable=gpu)


def conv(x, w, stride=1, padding=1):
    return torch.ops.aten.convolution(x, w, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)


def conv_backward(dy, x, w, stride=1, padding=1, mask=(True, True, False)):
    return torch.ops.aten.convolution_backward(dy, x, w, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, list(mask))


@functools.lru_cache
def fused_relu(dtype):
    """Whether cuDNN's convolution with bias and ReLU works here: it is handed its own, fresh output as a summand times 0."""
    x, w, b = torch.randn(2, 64, 64, 64), torch.randn(64, 64, 3, 3) * 0.05, torch.randn(64)
    x, w, b = x.to("cuda", dtype).to(memory_format=CL), w.to("cuda", dtype).to(memory_format=CL), b.to("cuda", dtype)
    right = F.conv2d(x, w, b, padding=1).relu()
    for _ in range(3):
        torch.full_like(x, float("nan"))  # what a fresh output may hold
        y = torch.cudnn_convolution_relu(x, w, b, [1, 1], [1, 1], [1, 1], 1)
        if not torch.allclose(y, right, rtol=0.05, atol=0.05):
            print("# cudnn_convolution_relu is wrong here: bias and ReLU by Triton", flush=True)
            return False
        del y
    return True


def conv_relu(x, w, b):
    if x.is_cuda and fused_relu(x.dtype):
        return torch.cudnn_convolution_relu(x, w, b, [1, 1], [1, 1], [1, 1], 1)
    one, zero = torch.ones_like(b, dtype=torch.float32), torch.zeros_like(b, dtype=torch.float32)
    return k.apply(conv(x, w), torch.stack([one, b.float(), zero, one, zero])[:, None].contiguous(), k.RELU)


def flat2d(x):
    """[B,C,H,W] channels_last -> [B·H·W, C], a view"""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def map4d(y, like):
    b, _, h, w = like.shape
    return y.view(b, h, w, -1).permute(0, 3, 1, 2)


def column_sums(dy):
    return k.column_sums(dy.contiguous(memory_format=CL))


def pad_channels(w, out=False):
    """Zero channels up to a multiple of 8: cuDNN is slow at 3."""
    d = 0 if out else 1
    n = -w.shape[d] % 8
    if n == 0:
        return w
    return F.pad(w, (0, 0, 0, 0, 0, 0, 0, n) if out else (0, 0, 0, 0, 0, n)).contiguous(memory_format=CL)


# ---------------------------------------------------------------- encoder and decoder, norms and biases fused
class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma, beta, act, part):
        y, coef = k.norm_act(x, gamma, beta, act=act, part=part)
        ctx.save_for_backward(x, coef)
        ctx.act = act
        return y

    @staticmethod
    def backward(ctx, dy):
        dx, g = k.norm_act_backward(dy.contiguous(memory_format=CL), *ctx.saved_tensors, act=ctx.act)
        return dx, g[0], g[1], None, None


class BiasSums(torch.autograd.Function):
    """x + bias (+ other), with the sums that the next norm needs."""

    @staticmethod
    def forward(ctx, x, bias, other):
        y, part = k.sums(x, x.shape[0], x.shape[2] * x.shape[3], other, bias, True)
        ctx.mark_non_differentiable(part)
        ctx.other = other is not None
        return y, part

    @staticmethod
    def backward(ctx, dy, _):
        return dy, column_sums(dy), dy if ctx.other else None


class Resnet(torch.autograd.Function):
    """ResnetBlock; the sums of its input (part) come from who made it, those of its output go along."""

    @staticmethod
    def forward(ctx, x, part, g1, e1, w1, b1, g2, e2, w2, b2, ws, bs):
        a1, c1 = k.norm_act(x, g1, e1, part=part)
        h = conv(a1, w1)
        a2, c2 = k.norm_act(h, g2, e2, bias=b1)
        y = conv(a2, w2)
        skip, bias = x, b2
        if ws is not None:
            skip, bias = map4d(flat2d(x) @ ws.flatten(1).t(), x), b2.float() + bs.float()
        y, part = k.sums(y, x.shape[0], x.shape[2] * x.shape[3], skip, bias, True)
        ctx.save_for_backward(x, a1, c1, h, a2, c2, w1, w2, ws)
        ctx.mark_non_differentiable(part)
        return y, part

    @staticmethod
    def backward(ctx, dy, _):
        x, a1, c1, h, a2, c2, w1, w2, ws = ctx.saved_tensors
        dy = dy.contiguous(memory_format=CL)
        db2 = column_sums(dy)
        da, dw2, _ = conv_backward(dy, a2, w2)
        dh, p2 = k.norm_act_backward(da, h, c2)
        da, dw1, _ = conv_backward(dh, a1, w1)
        skip, dws, dbs = dy, None, None
        if ws is not None:
            skip = map4d(flat2d(dy) @ ws.flatten(1), x)
            dws, dbs = (flat2d(dy).t() @ flat2d(x)).view_as(ws), db2
        dx, p1 = k.norm_act_backward(da, x, c1, add=skip)
        return dx, None, p1[0], p1[1], dw1, p2[2], p2[0], p2[1], dw2, db2, dws, dbs


class Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return k.upsample(x)

    @staticmethod
    def backward(ctx, dy):
        return k.upsample_backward(dy.contiguous(memory_format=CL))


@functools.lru_cache
def fold_matrix(device, dtype):
    return torch.tensor([[0., 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], device=device, dtype=dtype)


def folded(w):
    """Nearest upsampling and a 3×3 convolution [O,I,3,3] as the weights [I,O,4,4] of one transposed convolution of stride 2."""
    m = fold_matrix(w.device, w.dtype)
    return torch.einsum("ak,oikl,bl->ioab", m, w, m).contiguous(memory_format=CL)


def resnet(b, x, part):
    s = getattr(b, "nin_shortcut", None)
    return Resnet.apply(x, part, b.norm1.weight, b.norm1.bias, b.conv1.weight, b.conv1.bias, b.norm2.weight, b.norm2.bias, b.conv2.weight, b.conv2.bias,
                        s.weight if s else None, s.bias if s else None)


def attention(b, x, n):
    """Single head by matmuls: rows are positions, so nothing is transposed in memory; n = norm(x)."""
    bs, c, h, w = x.shape
    weight = torch.cat([m.weight.flatten(1) for m in (b.q, b.k, b.v)])
    bias = torch.cat([m.bias for m in (b.q, b.k, b.v)])
    q, kk, v = F.linear(flat2d(n).view(bs, h * w, c), weight, bias).split(c, 2)
    a = torch.softmax(torch.bmm(q, kk.transpose(1, 2)) * c ** -0.5, 2)
    o = F.linear(torch.bmm(a, v), b.proj_out.weight.flatten(1), b.proj_out.bias)
    return x + o.reshape(bs, h, w, c).permute(0, 3, 1, 2)


class Triton:
    """Encoder and decoder of rdpm_ref.Tokenizer by custom autograd functions."""

    def __init__(self, tk, fold=False):
        self.tk, self.fold = tk, fold

    def attn(self, b, x, part):
        return attention(b, x, Norm.apply(x, b.norm.weight, b.norm.bias, k.LINEAR, part))

    def mid(self, m, x, part):
        x, part = resnet(m.block_1, x, part)
        return resnet(m.block_2, self.attn(m.attn_1, x, part), None)

    def level(self, l, x, part):
        for i, b in enumerate(l.block):
            x, part = resnet(b, x, part)
            if len(l.attn):
                x, part = self.attn(l.attn[i], x, part), None
        if hasattr(l, "downsample"):
            c = l.downsample.conv
            x, part = BiasSums.apply(F.conv2d(F.pad(x, (0, 1, 0, 1)), c.weight, stride=2), c.bias, None)
        if hasattr(l, "upsample"):
            c = l.upsample.conv
            y = F.conv_transpose2d(x, folded(c.weight), stride=2, padding=1) if self.fold else F.conv2d(Up.apply(x), c.weight, padding=1)
            x, part = BiasSums.apply(y, c.bias, None)
        return x, part

    def encoder(self, x8):
        e = self.tk.encoder
        x, part = BiasSums.apply(F.conv2d(x8, pad_channels(e.conv_in.weight), padding=1), e.conv_in.bias, None)
        for l in e.down:
            x, part = self.level(l, x, part)
        x, part = self.mid(e.mid, x, part)
        return F.conv2d(Norm.apply(x, e.norm_out.weight, e.norm_out.bias, k.SILU, part), e.conv_out.weight, e.conv_out.bias, padding=1)

    def decoder(self, z):
        d = self.tk.decoder
        x, part = BiasSums.apply(F.conv2d(z, d.conv_in.weight, padding=1), d.conv_in.bias, None)
        x, part = self.mid(d.mid, x, part)
        for l in reversed(d.up):
            x, part = self.level(l, x, part)
        return Norm.apply(x, d.norm_out.weight, d.norm_out.bias, k.SILU, part)


# ---------------------------------------------------------------- encoder and decoder for torch.compile, the norm as an operator
@torch.library.custom_op("rdpm::norm_act", mutates_args=())
def norm_act(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, act: int) -> tuple[torch.Tensor, torch.Tensor]:
    return k.norm_act(x, gamma, beta, act=act)


@norm_act.register_fake
def _(x, gamma, beta, act):
    return torch.empty_like(x, memory_format=CL), x.new_empty(5, x.shape[0], x.shape[1], dtype=torch.float32)


@torch.library.custom_op("rdpm::norm_act_backward", mutates_args=())
def norm_act_backward(dy: torch.Tensor, x: torch.Tensor, coef: torch.Tensor, act: int) -> tuple[torch.Tensor, torch.Tensor]:
    return k.norm_act_backward(dy.contiguous(memory_format=CL), x, coef, act=act)


@norm_act_backward.register_fake
def _(dy, x, coef, act):
    return torch.empty_like(x, memory_format=CL), x.new_empty(3, x.shape[1], dtype=torch.float32)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], output[1], inputs[1])
    ctx.act = inputs[3]


def _backward(ctx, dy, _):
    x, coef, gamma = ctx.saved_tensors
    dx, g = torch.ops.rdpm.norm_act_backward(dy, x, coef, ctx.act)
    return dx, g[0].to(gamma.dtype), g[1].to(gamma.dtype), None


norm_act.register_autograd(_backward, setup_context=_setup)


class Compiled:
    """The same by plain PyTorch operations but for the norm; everything else is the compiler's."""

    def __init__(self, tk, **options):
        self.tk = tk
        self.encoder, self.decoder = torch.compile(self.encode, **options), torch.compile(self.decode, **options)

    def norm(self, n, x, act=k.SILU):
        return torch.ops.rdpm.norm_act(x, n.weight, n.bias, act)[0]

    def resnet(self, b, x):
        h = b.conv1(self.norm(b.norm1, x))
        h = b.conv2(self.norm(b.norm2, h))
        if hasattr(b, "nin_shortcut"):
            c = b.nin_shortcut
            x = F.linear(x.permute(0, 2, 3, 1), c.weight.flatten(1), c.bias).permute(0, 3, 1, 2)
        return h + x

    def attn(self, b, x):
        return attention(b, x, self.norm(b.norm, x, k.LINEAR))

    def mid(self, m, x):
        return self.resnet(m.block_2, self.attn(m.attn_1, self.resnet(m.block_1, x)))

    def level(self, l, x):
        for i, b in enumerate(l.block):
            x = self.resnet(b, x)
            if len(l.attn):
                x = self.attn(l.attn[i], x)
        if hasattr(l, "downsample"):
            x = l.downsample(x)
        if hasattr(l, "upsample"):
            b, c, h, w = x.shape  # as a view that is copied: its gradient is a sum, not a scatter
            x = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(b, h, 2, w, 2, c).reshape(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
            x = l.upsample.conv(x)
        return x

    def encode(self, x8):
        e = self.tk.encoder
        x = F.conv2d(x8, pad_channels(e.conv_in.weight), e.conv_in.bias, padding=1)
        for l in e.down:
            x = self.level(l, x)
        return e.conv_out(self.norm(e.norm_out, self.mid(e.mid, x)))

    def decode(self, z):
        d = self.tk.decoder
        x = self.mid(d.mid, d.conv_in(z))
        for l in reversed(d.up):
            x = self.level(l, x)
        return self.norm(d.norm_out, x)


# ---------------------------------------------------------------- the losses, each with its gradient
class Perceptual:
    """LPIPS of real (first half) and fake images (second half) in one batch, and its gradient at the fake ones."""

    def __init__(self, lp, dtype):
        self.lp = lp
        self.layers = [[m for m in s if isinstance(m, torch.nn.Conv2d)] for s in lp.net.stages]
        self.weights = [[pad_channels(c.weight.detach().to(dtype)).contiguous(memory_format=CL) for c in s] for s in self.layers]
        self.biases = [[c.bias.detach().to(dtype) for c in s] for s in self.layers]
        self.heads = [h.detach().flatten().contiguous() for h in lp.heads]

    def __call__(self, images):
        """images [2B,8,H,W], channels 3 to 7 zero -> distance, gradient [B,3,H,W]"""
        b = images.shape[0] // 2
        x = torch.zeros_like(images)
        x[:, :3] = (images[:, :3].float() - self.lp.shift) / self.lp.scale
        kept, total, taps = [], 0, []
        for i, (ws, bs) in enumerate(zip(self.weights, self.biases)):
            if i:
                x = k.pool(x)
            outs = []
            for w, bias in zip(ws, bs):
                x = conv_relu(x, w, bias)
                outs.append(x[b:])
            kept.append(outs)
            d, g = k.lpips_tap(x[:b], x[b:], self.heads[i])
            total = total + d
            taps.append(g)
        g = None
        for i in reversed(range(len(kept))):
            outs, ws = kept[i], self.weights[i]
            g = taps[i].mul_(outs[-1] > 0) if g is None else k.tap_backward(outs[-1], taps[i], g)
            for j in reversed(range(len(outs))):
                inside = outs[j - 1] if j else (outs[j] if i else images[b:])  # only its shape counts for the gradient at it
                if not j and i:
                    inside = torch.empty(g.shape[0], ws[0].shape[1], *g.shape[2:], device=g.device, dtype=g.dtype).to(memory_format=CL)
                g = conv_backward(g, inside, ws[j], mask=(True, False, False))[0]
                if j:
                    g = torch.ops.aten.threshold_backward(g, outs[j - 1], 0)
        return total, g[:, :3].float() / self.lp.scale


class Judge:
    """The discriminator on real and fake images in one batch (BatchNorm over each half), forward once, backward twice."""

    def __init__(self, disc):
        mods = list(disc.main)
        self.convs = [m for m in mods if isinstance(m, torch.nn.Conv2d)]
        self.norms = [m for m in mods if isinstance(m, torch.nn.BatchNorm2d)]
        self.strides = [m.stride[0] for m in self.convs]

    def forward(self, images):
        c = self.convs
        self.w = [pad_channels(c[0].weight)] + [m.weight for m in c[1:-1]] + [pad_channels(c[-1].weight, out=True)]
        one = torch.ones_like(c[0].bias, dtype=torch.float32)
        zero = torch.zeros_like(one)
        self.coef0 = torch.stack([one, c[0].bias.float(), zero, one, zero])[:, None].contiguous()
        self.x, self.h, self.coefs = [images], [conv(images, self.w[0], self.strides[0])], [self.coef0]
        self.x.append(k.apply(self.h[0], self.coef0, k.LEAKY))
        for w, s, n in zip(self.w[1:-1], self.strides[1:-1], self.norms):
            h = conv(self.x[-1], w, s)
            a, coef = k.norm_act(h, n.weight, n.bias, groups=h.shape[1], eps=n.eps, act=k.LEAKY, n=2)
            self.statistics(n, coef, h)
            self.h.append(h); self.x.append(a); self.coefs.append(coef)
        out = conv(self.x[-1], self.w[-1])[:, :1].float() + c[-1].bias.float().view(1, 1, 1, 1)
        return out

    @torch.no_grad()
    def statistics(self, n, coef, h):
        """Running statistics: real first, then fake, as two calls would leave them."""
        count = h.numel() // (2 * h.shape[1])
        mean, var = coef[2], (coef[3] ** -2 - n.eps) * (count / (count - 1))
        for i in range(2):
            n.running_mean.lerp_(mean[i], n.momentum)
            n.running_var.lerp_(var[i], n.momentum)

    def spread(self, g, like):
        """[n,1,h,w] -> eight channels, seven of them zero"""
        out = torch.zeros(g.shape[0], 8, *g.shape[2:], device=g.device, dtype=like.dtype).to(memory_format=CL)
        out[:, :1] = g
        return out

    def at_fake(self, g):
        """Gradient at the fake images from that at their logits."""
        b = g.shape[0]
        half = lambda t: t[t.shape[0] // 2:]
        g = self.spread(g, self.x[0])
        for i in reversed(range(len(self.w))):
            g = conv_backward(g, half(self.x[i]), self.w[i], self.strides[i], mask=(True, False, False))[0]
            if i > 1:
                g, _ = k.norm_act_backward(g, half(self.h[i - 1]), self.coefs[i - 1][:, 1:].contiguous(), groups=g.shape[1], act=k.LEAKY, weights=False)
            elif i == 1:
                g = torch.ops.aten.leaky_relu_backward(g, half(self.x[1]), 0.2, True)
        return g[:, :3].float()

    def gradients(self, g):
        """Gradients of all parameters, in the order of the module's, from that at the logits of both halves."""
        found = {self.convs[-1].bias: g.sum().view(1)}
        g = self.spread(g, self.x[0])
        for i in reversed(range(len(self.w))):
            g, dw, _ = conv_backward(g, self.x[i], self.w[i], self.strides[i], mask=(i > 0, True, False))
            c = self.convs[i].weight
            found[c] = dw[:c.shape[0], :c.shape[1]]
            if i > 1:
                g, p = k.norm_act_backward(g, self.h[i - 1], self.coefs[i - 1], groups=g.shape[1], act=k.LEAKY)
                found[self.norms[i - 2].weight], found[self.norms[i - 2].bias] = p[0], p[1]
            elif i == 1:
                g = torch.ops.aten.leaky_relu_backward(g, self.x[1], 0.2, True)
                found[self.convs[0].bias] = column_sums(g)
        return found


@torch.no_grad()
def quantize(q, z, eps, delta=0.25):
    """Algorithm 1 with Eq. 4: z, eps in f32 -> z'_T, the loss, the gradients at z, the codebook, and the bias convolution."""
    t_, b, d, h, w = eps.shape
    half = 0.5 * q.codebook.square().sum(1)
    residual, acc = z, torch.zeros_like(z)
    vs, qs, codes, looked = [], [], [], []
    for t in range(t_):
        v = torch.addcmul(q.beta[t] * eps[t], q.alpha[t], residual)
        c = k.nearest(flat2d(v).contiguous(), q.codebook, half)
        e = F.embedding(c, q.codebook).view(b, h, w, d).permute(0, 3, 1, 2)
        o = e if q.bias_conv is None else e + q.bias_conv(e)
        residual, acc = residual - o, acc + o
        vs.append(v); qs.append(o); codes.append(c); looked.append(e)
    v, o, c, e = torch.cat(vs), torch.cat(qs), torch.cat(codes), torch.cat(looked)
    gamma = q.alpha / q.alpha.sum()
    n = z.numel()
    diff = (v - o).contiguous(memory_format=CL).view(t_, b, d, h, w)
    loss = (gamma * diff.square().sum((1, 2, 3, 4)) / n).sum() * (1 + delta)
    gamma = gamma.view(-1, 1, 1, 1, 1) * (2 / n)
    dz = (diff * (gamma * delta * q.alpha.view(-1, 1, 1, 1, 1))).sum(0)
    do = (diff * -gamma).flatten(0, 1).contiguous(memory_format=CL)
    de, grads = do, []
    if q.bias_conv is not None:
        dx, dw, db = torch.ops.aten.convolution_backward(do, e.contiguous(memory_format=CL), q.bias_conv.weight, [d], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True])
        de, grads = do + dx, [dw, db]
    dbook = torch.zeros_like(q.codebook).index_add_(0, c, flat2d(de))
    return acc, loss, dz, dbook, grads


class Coder:
    """Encoder and decoder in `dtype` on f32 master weights; latents in f32."""

    def __init__(self, tk, features, dtype, **options):
        self.tk, self.dtype = tk, dtype
        self.flat = Flat(tk, dtype, lambda name, p: "norm" in name or name.startswith("quantize"))
        self.net = features(tk, **options)

    def encode(self, x8):
        tk = self.tk
        h = self.net.encoder(x8)
        h = F.linear(h.permute(0, 2, 3, 1), tk.quant_conv.weight.flatten(1), tk.quant_conv.bias)
        return tk.latent_norm(h.float()).permute(0, 3, 1, 2)

    def decode(self, z):
        tk = self.tk
        z = F.linear(z.permute(0, 2, 3, 1).to(self.dtype), tk.post_quant_conv.weight.flatten(1), tk.post_quant_conv.bias)
        return self.net.decoder(z.permute(0, 3, 1, 2))

    def pixels(self, h):
        c = self.tk.decoder.conv_out
        w = pad_channels(c.weight, out=True)
        return conv(h, w)[:, :3] + c.bias.view(1, 3, 1, 1), w

    def encode_pixels(self, x):
        return self.encode(pad_channels(x.to(self.dtype)))

    def decode_pixels(self, z):
        return self.pixels(self.decode(z))[0]


class Step(Coder):
    """One step of train-vae: everything on, batch and size fixed, all of it capturable."""

    def __init__(self, tk, disc, lp, batch, size, features="triton", dtype=torch.bfloat16, decay=0.9999, lr=4e-5, **options):
        super().__init__(tk, Triton if features == "triton" else Compiled, dtype, **options)
        self.disc, self.decay, self.dflat = disc, decay, Flat(disc, dtype, lambda name, p: p.dim() == 1)
        self.opt, self.dopt = self.flat.adam(lr), self.dflat.adam(lr)
        self.perceptual, self.judge = Perceptual(lp, dtype), Judge(disc)
        self.images = torch.zeros(2 * batch, 8, size, size, device=self.flat.w.device, dtype=dtype).to(memory_format=CL)

    def gradients(self, x, eps):
        """Losses, then the gradients in flat.g and dflat.g."""
        tk, b = self.tk, x.shape[0]
        self.images[:b, :3] = x
        z = self.encode(self.images.data[:b])  # .data: the other half is written before the backward pass
        acc, qloss, dz, dbook, dbias = quantize(tk.quantize, z.detach(), eps)
        zq = acc.detach().requires_grad_()
        h = self.decode(zq)
        with torch.no_grad():
            out, w8 = self.pixels(h)
            self.images[b:, :3] = out
            fake = out.float()
            diff = fake - x
            perceptual, g_rec = self.perceptual(self.images)
            g_rec = (g_rec + diff * (2 / diff.numel())).to(self.dtype)
            logits = self.judge.forward(self.images)
            real, false = logits[:b], logits[b:]
            g_adv = self.judge.at_fake(torch.full_like(false, -1 / false.numel())).to(self.dtype)
            both = torch.zeros(b, 8, *x.shape[2:], device=x.device, dtype=self.dtype).to(memory_format=CL)
            both[:, :3], both[:, 3:6] = g_rec, g_adv
            dw = conv_backward(both, h, w8, mask=(False, True, False))[1].float()
            lam = 0.75 * (dw[:3].norm() / (dw[3:6].norm() + 1e-4)).clamp(0, 1e4)
            g = both[:, :3] + lam.to(self.dtype) * both[:, 3:6]
            dconv, dbias_out = dw[:3] + lam * dw[3:6], column_sums(g)
            both.zero_()
            both[:, :3] = g
            dh = conv_backward(both, h, w8, mask=(True, False, False))[0]
        q, last = tk.quantize, tk.decoder.conv_out
        done = {q.embedding.weight: dbook, last.weight: dconv, last.bias: dbias_out}
        if q.bias_conv is not None:
            done[q.bias_conv.weight], done[q.bias_conv.bias] = dbias
        behind = [p for p in self.flat.params if not any(p is d for d in done)]
        decoder = [p for n, p in self.names() if n.startswith(("decoder", "post_quant_conv")) and any(p is o for o in behind)]
        encoder = [p for n, p in self.names() if n.startswith(("encoder", "quant_conv", "latent_norm"))]
        dzq, *found = torch.autograd.grad(h, [zq, *decoder], dh)
        done.update(zip(decoder, found))
        done.update(zip(encoder, torch.autograd.grad(z, encoder, dzq + dz)))
        self.flat.gather([done[p] for p in self.flat.params])
        hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + false).mean())
        seed = torch.cat([-(real < 1).float(), (false > -1).float()]) * (0.5 / false.numel())
        found = self.judge.gradients(seed)
        self.dflat.gather([found[p] for p in self.dflat.params])
        return diff.square().mean(), perceptual, -false.mean(), lam, qloss, hinge

    def names(self):
        return zip([n for n, _ in self.tk.named_parameters()], self.flat.params)

    def __call__(self, x, eps=None):
        b, d = x.shape[0], self.tk.quantize.codebook.shape[1]
        if eps is None:
            s = x.shape[2] // 2 ** (len(self.tk.encoder.down) - 1)
            eps = torch.randn(self.tk.quantize.T, b, s, s, d, device=x.device).permute(0, 1, 4, 2, 3)
        losses = self.gradients(x, eps)
        self.flat.update(self.opt, self.decay)
        self.dflat.update(self.dopt)
        return losses
