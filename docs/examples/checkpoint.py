"""Opens a checkpoint's decoder in PyTorch: what a program in Python needs to know of one.

    python checkpoint.py VERSION_FOLDER < rows.jsonl

A row is {"history": [[code, ...], ...], "session": [[code, ...], ...]}: semantic IDs, oldest
first; and "user": the user's id, for decoders that know users. For each it prints the log probability (nats) of the session's codes after the
history, one number a code. Needs torch and safetensors; items.parquet beside the weights says
which item has which codes.
"""
import json
import os
import sys

import torch
import torch.nn.functional as F
from safetensors import safe_open

BOS, SEP, SES, FIRST = 0, 1, 2, 3  # special tokens; then the codes, level by level, and the users


def load(folder):
    with safe_open(os.path.join(folder, "decoder.safetensors"), "pt") as f:
        return json.loads(f.metadata()["config"]), {name: f.get_tensor(name) for name in f.keys()}


def first(config, user):
    """The token that a row begins with: users are hashed into buckets (FNV-1a, 64 bits)."""
    if not user or not config.get("users"):
        return BOS
    h = 0xCBF29CE484222325
    for byte in user.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return FIRST + config["levels"] * config["codes"] + h % config["users"]


def tokens(config, row):
    """The row's tokens, and where the session's codes are among them."""
    sep = [] if config.get("compact") else [SEP]
    code = lambda item: [FIRST + level * config["codes"] + c for level, c in enumerate(item)]
    out, at = [first(config, row.get("user"))], []
    for item in row["history"]:
        out += code(item) + sep
    out.append(SES)
    for i, item in enumerate(row["session"]):
        out += sep if i else []
        at += range(len(out), len(out) + len(item))
        out += code(item)
    return torch.tensor(out), at


def rotate(x):
    """Rotary positions: the halves of each head turned against each other; x: heads, n, width."""
    n, width = x.shape[1:]
    angle = torch.arange(n)[:, None] * 10000.0 ** (-2 * torch.arange(width // 2) / width)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def feed(config, w, p, h):
    """The feed-forward part of h, tokens x dim: one part, or those of the experts that the router gives most, by their shares of that."""
    def part(h, up, down):
        a, b = (h @ up.T).chunk(2, -1)
        return (F.silu(a) * b) @ down.T
    up, down = w[p + "up"], w[p + "down"]
    if not config.get("experts"):
        return part(h, up, down)
    gates, chosen = (h @ w[p + "router"].T).softmax(-1).topk(config["active"], -1)
    shares, out = gates / gates.sum(-1, keepdim=True), torch.zeros_like(h)
    for expert in range(config["experts"]):
        rows, choice = (chosen == expert).nonzero(as_tuple=True)
        out[rows] += shares[rows, choice, None] * part(h[rows], up[expert], down[expert])
    return out


def logits(config, w, row_tokens):
    """Logits of the next token after each; the output matrix is the embedding's."""
    dim, norm = (config["dim"],), lambda x, name: F.rms_norm(x, (config["dim"],), w[name], 1e-6)
    x = w["embed"][row_tokens]
    for layer in range(config["layers"]):
        p = f"layers.{layer}."
        h = norm(x, p + "norm_attn") @ w[p + "qkv"].T
        q, k, v = (t.reshape(len(row_tokens), config["heads"], -1).transpose(0, 1) for t in h.chunk(3, -1))
        h = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + h.transpose(0, 1).reshape(len(row_tokens), *dim) @ w[p + "out"].T
        x = x + feed(config, w, p, norm(x, p + "norm_ff"))
    return norm(x, "norm") @ w["embed"].T


if __name__ == "__main__":
    config, weights = load(sys.argv[1])
    for line in sys.stdin:
        row, at = tokens(config, json.loads(line))
        with torch.no_grad():
            logp = F.log_softmax(logits(config, weights, row), -1)
        print(json.dumps([logp[i - 1, row[i]].item() for i in at]))
