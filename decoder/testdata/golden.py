"""Writes golden.safetensors: a small decoder in PyTorch, in float64, from random weights:
each prediction's log probability, the loss, every weight's gradient, and the weights after
ten steps of AdamW; then losses over pairs of rows from the same weights, and DPO's gradients.
golden-compact.safetensors is the same of rows without separators that begin with a user's
token, golden-experts.safetensors of a mixture of experts, whose gradients have the part that
keeps them busy. Run it where torch, numpy and safetensors are installed:

    python decoder/testdata/golden.py
"""
import json
import os

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

LAYERS, DIM, HEADS, HIDDEN, LEVELS, CODES, MAX_LEN = 2, 16, 2, 24, 2, 5, 40
BOS, SEP, SES, FIRST = 0, 1, 2, 3
HISTORY_WEIGHT, STEPS = 0.5, 10
BALANCE = 0.01
LEARNING_RATE, WEIGHT_DECAY, BETAS, EPS, CLIP = 0.01, 0.1, (0.9, 0.99), 1e-8, 1.0
HERE = os.path.dirname(__file__)

torch.set_default_dtype(torch.float64)


def write(name, compact=False, users=0, experts=0, active=0):
    rng = np.random.default_rng(7)
    vocab = FIRST + LEVELS * CODES + users
    shapes = {"embed": (vocab, DIM)}
    for l in range(LAYERS):
        shapes |= {f"layers.{l}.norm_attn": (DIM,), f"layers.{l}.qkv": (3 * DIM, DIM), f"layers.{l}.out": (DIM, DIM),
                   f"layers.{l}.norm_ff": (DIM,)}
        if experts:
            shapes |= {f"layers.{l}.up": (experts, 2 * HIDDEN, DIM), f"layers.{l}.down": (experts, DIM, HIDDEN), f"layers.{l}.router": (experts, DIM)}
        else:
            shapes |= {f"layers.{l}.up": (2 * HIDDEN, DIM), f"layers.{l}.down": (DIM, HIDDEN)}
    shapes["norm"] = (DIM,)
    start = {n: rng.normal(1.0 if len(s) == 1 else 0.0, 0.3, s).astype(np.float32) for n, s in shapes.items()}
    w = {n: torch.tensor(a, dtype=torch.float64, requires_grad=True) for n, a in start.items()}

    items = lambda n: rng.integers(0, CODES, (n, LEVELS)).tolist()
    rows = [{"history": items(h), "session": items(s)} for h, s in [(3, 2), (0, 4), (5, 1), (1, 3)]]
    for i, row in enumerate(rows):
        row["user"] = i % (users + 1)  # 0: nobody in particular

    def layout(row):
        """A row's tokens and its predictions: position of the token before, token, weight."""
        tokens, predictions = [FIRST + LEVELS * CODES + row["user"] - 1 if row["user"] else BOS], []

        def item(codes, weight):
            for level, code in enumerate(codes):
                token = FIRST + level * CODES + code
                predictions.append((len(tokens) - 1, token, weight))
                tokens.append(token)

        for i in row["history"]:
            item(i, HISTORY_WEIGHT)
            if not compact:
                tokens.append(SEP)
        tokens.append(SES)
        for k, i in enumerate(row["session"]):
            if k and not compact:
                tokens.append(SEP)
            item(i, 1.0)
        return torch.tensor(tokens), predictions

    def rotate(x):
        """Rotary positions, the halves of each head turned against each other; x: heads, n, width."""
        n, width = x.shape[1:]
        half = width // 2
        angle = torch.arange(n)[:, None] * 10000.0 ** (-2 * torch.arange(half) / width)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    routed = []  # of each row and layer: gates, and which experts were chosen

    def feed(h, p):
        """The feed-forward part of h, tokens x DIM."""
        def one(h, up, down):
            a, b = (h @ up.T).split(HIDDEN, -1)
            return (F.silu(a) * b) @ down.T
        if not experts:
            return one(h, p("up"), p("down"))
        gates = (h @ p("router").T).softmax(-1)
        weights, chosen = gates.topk(active, -1)
        routed.append((gates, chosen))
        weights = weights / weights.sum(-1, keepdim=True)
        answers = torch.stack([one(h, p("up")[e], p("down")[e]) for e in range(experts)], 1)
        return sum(weights[:, k:k + 1] * answers[torch.arange(len(h)), chosen[:, k]] for k in range(active))

    def balance():
        """The loss that keeps experts busy, over all rows since the last call, summed over layers (Fedus et al., arXiv 2101.03961, equation 4);
        in the last layer over the tokens from which something is predicted: others have no part in anything there."""
        total = torch.tensor(0.0)
        for l in range(LAYERS if experts else 0):
            gates, chosen = (torch.cat(x) for x in zip(*routed[l::LAYERS]))
            share = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
            total = total + experts * (share * gates.mean(0)).sum()
        routed.clear()
        return total

    def hidden(tokens, predicting):
        x = w["embed"][tokens]
        for l in range(LAYERS):
            p = lambda name: w[f"layers.{l}.{name}"]
            h = F.rms_norm(x, (DIM,), p("norm_attn"), 1e-6) @ p("qkv").T
            q, k, v = (t.reshape(len(tokens), HEADS, -1).transpose(0, 1) for t in h.split(DIM, -1))
            h = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
            x = x + h.transpose(0, 1).reshape(len(tokens), DIM) @ p("out").T
            x = x + feed(F.rms_norm(x, (DIM,), p("norm_ff"), 1e-6), p)
        if experts:
            routed[-1] = tuple(t[predicting] for t in routed[-1])
        return F.rms_norm(x, (DIM,), w["norm"], 1e-6)

    def run():
        logp, weights = [], []
        for row in rows:
            tokens, predictions = layout(row)
            lp = F.log_softmax(hidden(tokens, [at for at, _, _ in predictions]) @ w["embed"].T, -1)
            for at, target, weight in predictions:
                logp.append(lp[at, target])
                weights.append(weight)
        logp, weights = torch.stack(logp), torch.tensor(weights)
        return logp, -(logp * weights).sum() / weights.sum()

    out = {f"w.{n}": a for n, a in start.items()}
    optimizer = torch.optim.AdamW([{"params": [t for t in w.values() if t.dim() > 1], "weight_decay": WEIGHT_DECAY},
                                   {"params": [t for t in w.values() if t.dim() == 1], "weight_decay": 0.0}], lr=LEARNING_RATE, betas=BETAS, eps=EPS)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        logp, loss = run()
        even = balance()
        (loss + BALANCE * even).backward()
        losses.append(loss.item())
        if step == 0:
            evenness = even.item() / LAYERS
            out["logp"] = logp.detach().numpy().astype(np.float32)
            out |= {f"grad.{n}": t.grad.numpy().astype(np.float32) for n, t in w.items()}
        torch.nn.utils.clip_grad_norm_(w.values(), CLIP)
        optimizer.step()
    out |= {f"after.{n}": t.detach().numpy().astype(np.float32) for n, t in w.items()}
    # Rows 0 and 3 won against 1 and 2.
    PAIRS, REF, BETA, SMOOTHING, GAMMA = [(0, 1), (3, 2)], torch.tensor([0.4, -0.7]), 0.3, 0.1, 0.5
    REWARD = torch.tensor([0.6, 0.3])
    w = {n: torch.tensor(a, dtype=torch.float64, requires_grad=True) for n, a in start.items()}

    def session(row):
        """The log probability of a row's session, and its number of codes."""
        tokens, predictions = layout(row)
        predictions = [p for p in predictions if p[2] == 1.0]
        lp = F.log_softmax(hidden(tokens, [at for at, _, _ in predictions]) @ w["embed"].T, -1)
        own = [lp[at, target] for at, target, weight in predictions]
        return torch.stack(own).sum(), len(own)

    scores = [session(r) for r in rows]
    even = balance()
    margin = torch.stack([scores[a][0] - scores[b][0] for a, b in PAIRS])
    mean = torch.stack([scores[a][0] / scores[a][1] - scores[b][0] / scores[b][1] for a, b in PAIRS])
    won, lost = -F.logsigmoid(BETA * (margin - REF)), -F.logsigmoid(-BETA * (margin - REF))
    preferences = {
        "dpo": won.mean(), "cdpo": ((1 - SMOOTHING) * won + SMOOTHING * lost).mean(),
        "rdpo": (((1 - SMOOTHING) * won - SMOOTHING * lost) / (1 - 2 * SMOOTHING)).mean(),
        "ipo": ((margin - REF - 1 / (2 * BETA)) ** 2).mean(), "simpo": -F.logsigmoid(BETA * mean - GAMMA).mean(),
        "copg": ((REWARD - BETA * (margin - REF)) ** 2).mean(),
    }
    # S-DPO: row 0 won against 1 and 2, row 3 against 2.
    GROUPS, GROUPS_REF = [(0, 1), (0, 2), (3, 2)], torch.tensor([0.4, -0.2, -0.7])
    odds = -BETA * (torch.stack([scores[a][0] - scores[b][0] for a, b in GROUPS]) - GROUPS_REF)
    preferences["sdpo"] = -(F.logsigmoid(-torch.logsumexp(odds[:2], 0)) + F.logsigmoid(-odds[2])) / 2
    (preferences["dpo"] + BALANCE * even).backward()
    out |= {f"dpo.{n}": t.grad.numpy().astype(np.float32) for n, t in w.items()}
    preference = {"losses": {n: v.item() for n, v in preferences.items()}, "pairs": PAIRS, "ref": REF.tolist(), "beta": BETA, "smoothing": SMOOTHING, "gamma": GAMMA,
                  "reward": REWARD.tolist(), "groups": GROUPS, "groups_ref": GROUPS_REF.tolist(), "balance": even.item() / LAYERS}

    meta = {"preference": preference, "config": {"layers": LAYERS, "dim": DIM, "heads": HEADS, "hidden": HIDDEN, "levels": LEVELS, "codes": CODES, "max_len": MAX_LEN, "compact": compact, "users": users, "experts": experts, "active": active},
            "rows": rows, "history_weight": HISTORY_WEIGHT, "losses": losses, "balance": evenness,
            "optimizer": {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "clip": CLIP}}
    save_file(out, os.path.join(HERE, name + ".safetensors"), metadata={"golden": json.dumps(meta)})


write("golden")
write("golden-compact", compact=True, users=2)
write("golden-experts", experts=4, active=2)
