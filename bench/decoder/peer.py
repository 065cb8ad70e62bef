"""The same decoder in PyTorch, for BenchmarkDecoderPeers.

    peer.py step LAYERS DIM HEADS HIDDEN VOCAB TOKENS ROWS SECONDS EXPERTS ACTIVE
    peer.py generate LAYERS DIM HEADS HIDDEN LEVELS CODES HISTORY BEAMS BATCH SECONDS
    peer.py serve LAYERS DIM HEADS HIDDEN LEVELS CODES HISTORY BEAMS ITEMS
    peer.py peak N SECONDS

Prints a JSON object, and another one, measured again, for each line of its input (serve: see below). A step is forward, backward and AdamW over ROWS rows of TOKENS
tokens of which 3 of 4 are predicted; eager and compiled, with one thread and with all, and
what was fastest at first counts; EXPERTS above 0 is a mixture of so many of width HIDDEN. generate prefills HISTORY items for each of BATCH users and draws
LEVELS codes with BEAMS beams each, with a KV cache, in float32 and, at first alone, in bfloat16. serve answers each POST with a list of ITEMS
items, written code by code in the same way, from Python's own HTTP server; it prints its port, and how many lists a second it writes alone, without a server, in
float32 and in bfloat16, and runs until its input ends. peak is the speed of numpy's matrix
product (OpenBLAS), GFLOP/s.
"""
import json
import os
import resource
import statistics
import sys
import time

which, args = sys.argv[1], sys.argv[2:]
if which == "peak":
    import numpy as np
    n, seconds = int(args[0]), float(args[1])
    a, b = np.random.rand(n, n).astype(np.float32), np.random.rand(n, n).astype(np.float32)
    a @ b
    while True:
        rates, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            a @ b
            rates.append(2 * n**3 / (time.perf_counter() - start) / 1e9)
        print(json.dumps({"gflops": statistics.median(rates)}), flush=True)
        if not sys.stdin.readline():
            sys.exit()

import torch
import torch.nn.functional as F

torch.manual_seed(1)
layers, dim, heads, hidden = map(int, args[:4])


class Decoder(torch.nn.Module):
    def __init__(self, vocab, length, experts=0, active=0):
        super().__init__()
        param = lambda *s: torch.nn.Parameter(torch.randn(*s) * 0.02)
        self.experts, self.active, many = experts, active, (experts,) if experts else ()
        self.embed = param(vocab, dim)
        self.layers = torch.nn.ModuleList()
        for _ in range(layers):
            l = torch.nn.Module()
            l.n1, l.n2 = torch.nn.Parameter(torch.ones(dim)), torch.nn.Parameter(torch.ones(dim))
            l.qkv, l.out, l.up, l.down = param(3 * dim, dim), param(dim, dim), param(*many, 2 * hidden, dim), param(*many, dim, hidden)
            if experts:
                l.router = param(experts, dim)
            self.layers.append(l)
        self.norm = torch.nn.Parameter(torch.ones(dim))
        half = dim // heads // 2
        angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def rotate(self, x, at=0):
        half, n = x.shape[-1] // 2, x.shape[-2]
        cos, sin = self.cos[at:at + n], self.sin[at:at + n]
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def mixture(self, l, h):
        """What the experts answer, tokens grouped by expert, and the loss that keeps experts busy."""
        x = h.reshape(-1, dim)
        gates = F.linear(x, l.router).softmax(-1)
        weights, chosen = gates.topk(self.active, -1)
        weights, chosen = weights / weights.sum(-1, keepdim=True), chosen.flatten()
        order, counts = chosen.argsort(stable=True), torch.bincount(chosen, minlength=self.experts)
        rows, answers = order // self.active, []
        for e, own in enumerate(x[rows].split(counts.tolist())):
            a, b = F.linear(own, l.up[e]).split(hidden, -1)
            answers.append(F.linear(F.silu(a) * b, l.down[e]))
        y = torch.zeros_like(x).index_add(0, rows, torch.cat(answers) * weights.flatten()[order, None])
        return y.view_as(h), self.experts * (counts / len(chosen) * gates.mean(0)).sum()

    def forward(self, tokens, past=None, at=0, fresh=None):
        """tokens: B x n. past: shared keys and values by layer (B x heads x t x width); fresh: those
        of the beams, extended here."""
        B, n = tokens.shape
        x = self.embed[tokens]
        kept, self.busy = [], 0.0
        for i, l in enumerate(self.layers):
            h = F.linear(F.rms_norm(x, (dim,), l.n1, 1e-6), l.qkv)
            q, k, v = h.view(B, n, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
            q, k = self.rotate(q, at), self.rotate(k, at)
            if past is None:
                kept.append((k, v))
                o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                pk, pv = past[i]
                if fresh is not None and len(fresh) > i:
                    k, v = torch.cat([fresh[i][0], k], 2), torch.cat([fresh[i][1], v], 2)
                kept.append((k, v))
                # What all beams share is one matrix product, not a copy for each of them.
                width, users = dim // heads, pk.shape[0]
                mine = q.view(users, B // users, heads, width).transpose(1, 2)
                shared = (mine @ pk.transpose(-1, -2)).transpose(1, 2).reshape(B, heads, 1, -1)
                weights = torch.cat([shared, q @ k.transpose(-1, -2)], -1).mul(width**-0.5).softmax(-1)
                t = pk.shape[2]
                o = (weights[..., :t].view(users, B // users, heads, t).transpose(1, 2) @ pv).transpose(1, 2).reshape(B, heads, 1, width)
                o = o + weights[..., t:] @ v
            x = x + F.linear(o.transpose(1, 2).reshape(B, n, dim), l.out)
            h = F.rms_norm(x, (dim,), l.n2, 1e-6)
            if self.experts:
                y, busy = self.mixture(l, h)
                x, self.busy = x + y, self.busy + busy
                continue
            a, b = F.linear(h, l.up).split(hidden, -1)
            x = x + F.linear(F.silu(a) * b, l.down)
        return F.rms_norm(x, (dim,), self.norm, 1e-6), kept


def report(**found):
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found), flush=True)


def again(measure):
    """Measures, and again for each line of the input."""
    while True:
        report(**measure())
        if not sys.stdin.readline():
            return


def timed(fn, seconds):
    fn()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return times


if which == "step":
    vocab, length, rows, seconds = int(args[4]), int(args[5]), int(args[6]), float(args[7])
    model = Decoder(vocab, length, int(args[8]), int(args[9]))
    tokens = torch.randint(0, vocab, (rows, length))
    asked = (torch.arange(length - 1) % 4 != 3).nonzero()[:, 0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def loss_of(tokens):
        h, _ = model(tokens)
        return F.cross_entropy(F.linear(h[:, asked].reshape(-1, dim), model.embed), tokens[:, asked + 1].reshape(-1)) + 0.01 * model.busy

    ways = [(threads, name, fn) for name, fn in (("eager", loss_of), ("compiled", torch.compile(loss_of))) for threads in sorted({1, os.cpu_count()})]

    def rate(threads, fn):
        torch.set_num_threads(threads)

        def step():
            optimizer.zero_grad(set_to_none=True)
            fn(tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return rows * length / statistics.median(timed(step, seconds))

    found = {}
    for threads, name, fn in ways:
        try:
            found[threads, name, fn] = rate(threads, fn)
        except Exception as e:  # no compiler
            print(f"{name}: {type(e).__name__}", file=sys.stderr)
    best = max(found, key=found.get)
    threads, name, fn = best
    again(lambda: dict(tokens_per_s=rate(threads, fn), best=f"{name}, {threads} threads"))
elif which == "serve":
    import http.server
    import threading

    levels, codes, history, beams, length_items = map(int, args[4:9])
    vocab, length = 3 + levels * codes, 2 + history * (levels + 1)
    model = Decoder(vocab, length + length_items * (levels + 1))
    torch.set_num_threads(os.cpu_count())

    @torch.inference_mode()
    def recommend():
        h, past = model(torch.randint(3, vocab, (1, length)))
        score, fresh, last, at = torch.zeros(1, 1), None, h[:, -1:], length
        for step in range(length_items * levels):
            lo = 3 + step % levels * codes
            lp = F.log_softmax(F.linear(last, model.embed), -1)[..., lo:lo + codes]
            total = (score[..., None] + lp).reshape(1, -1)
            score, pick = total.topk(min(beams, total.shape[-1]), -1)
            parent, code = (pick // codes)[0], pick % codes
            if fresh is not None:
                fresh = [(k[parent], v[parent]) for k, v in fresh]
            if step == length_items * levels - 1:
                return score[0, 0].item()
            h, fresh = model((lo + code).reshape(-1, 1), past, at, fresh)
            at += 1
            if step % levels == levels - 1:  # the separator that ends an item
                h, fresh = model(torch.full((pick.shape[-1], 1), 1), past, at, fresh)
                at += 1
            last = h.view(1, -1, dim)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.dumps({"score": recommend()}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    speed = {}
    for number in (torch.bfloat16, torch.float32):  # in which it serves
        model.to(number)
        speed[number] = 1 / statistics.median(timed(recommend, 3))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"port": server.server_address[1], "alone_per_s": speed[torch.float32], "bfloat16_per_s": speed[torch.bfloat16]}), flush=True)
    sys.stdin.read()
else:
    levels, codes, history, beams, batch, seconds = *map(int, args[4:9]), float(args[9])
    vocab, length = 3 + levels * codes, 2 + history * (levels + 1)
    model = Decoder(vocab, length + levels)
    number = torch.float32
    prompt = torch.randint(3, vocab, (batch, length))

    @torch.inference_mode()
    def generate():
        h, past = model(prompt)
        score = torch.zeros(batch, 1, dtype=number)
        fresh, hidden_last = None, h[:, -1:]
        for level in range(levels):
            lo = 3 + level * codes
            lp = F.log_softmax(F.linear(hidden_last, model.embed), -1)[..., lo:lo + codes]
            total = (score[..., None] + lp).reshape(batch, -1)
            score, pick = total.topk(beams, -1)
            parent, code = pick // codes, pick % codes
            if level == levels - 1:
                return score, parent, code
            if fresh is not None:
                flat = (parent + torch.arange(batch)[:, None] * beams).reshape(-1)
                fresh = [(k[flat], v[flat]) for k, v in fresh]
            h, fresh = model((lo + code).reshape(-1, 1), past, length + level, fresh)
            hidden_last = h.view(batch, beams, dim)

    def rate(numbers, threads):
        global number
        number = numbers
        model.to(number)
        torch.set_num_threads(threads)
        times = timed(generate, seconds)
        return {"requests_per_s": batch / statistics.median(times), "p50_ms": statistics.median(times) * 1e3, "p99_ms": sorted(times)[int(len(times) * 0.99)] * 1e3}

    best, narrow = (max(sorted({1, os.cpu_count()}), key=lambda threads: rate(numbers, threads)["requests_per_s"]) for numbers in (torch.float32, torch.bfloat16))
    narrow = rate(torch.bfloat16, narrow)["requests_per_s"]
    again(lambda: dict(bfloat16_per_s=narrow, **rate(torch.float32, best)))
