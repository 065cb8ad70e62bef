"""What a sparse mixture of experts brings, for docs/decoder.md.

    experts.py SEQUENCES IDS EXPERTS ACTIVE HIDDEN EPOCHS [SEED]

Trains the decoder of "onerec eval" (4 layers of 128, compact rows, dropout 0.3, AdamW with a cosine) in PyTorch on all
but the last two items of each line of SEQUENCES (user, then items), and prints after every fourth epoch what the item before the last
costs, in nats, and Recall and NDCG at 10 with 20 beams, of all items but those that the user has, for 2,000 users. IDS are the
items' semantic IDs of two levels, as "onerec semanticid export" writes them:

    awk '{printf "%s", $1; for (i = 2; i <= NF-2; i++) printf " %s", $i; print ""}' sequences.txt > train.txt
    onerec semanticid embed --sequences train.txt --attributes item_attributes.json --out embeddings.parquet
    onerec semanticid build --embeddings embeddings.parquet --out codebook --levels 2 --codes 2048
    onerec semanticid export --codebook codebook --out ids.jsonl
    python experts.py sequences.txt ids.jsonl 8 2 176 12

EXPERTS 1 is a dense feed-forward part of HIDDEN. Otherwise each token goes to the ACTIVE experts, each of HIDDEN, that its router
gives the most, weighted by their shares of what it gives them (as in Mixtral, arXiv 2401.04088); the loss that keeps experts busy is Switch's
(arXiv 2101.03961, equation 4). A layer computes as much with EXPERTS 1, HIDDEN 352 as with 24, 2 and 176.
"""
import gzip
import json
import math
import random
import sys
import time

import torch
import torch.nn.functional as F

sequences, ids_file, experts, active, hidden, epochs = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7])
seed = int(sys.argv[7]) if len(sys.argv) > 7 else 1
torch.manual_seed(seed)
rng = random.Random(seed)
layers, dim, heads, codes, most = 4, 128, 4, 2048, 32
drop, batch_tokens, rate, warmup, decay, balance = 0.3, 4096, 2e-3, 100, 0.05, 0.01
BOS, SES, vocab = 2 * codes, 2 * codes + 1, 2 * codes + 2

ids = {}
for line in open(ids_file):
    item = json.loads(line)
    ids[item["item_id"]] = (item["semantic_id"][0], codes + item["semantic_id"][1])
users = []
for line in (gzip.open(sequences, "rt") if sequences.endswith(".gz") else open(sequences)):
    users.append([ids[i] for i in line.split()[1:]])


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        param = lambda *s, scale=0.02: torch.nn.Parameter(torch.randn(*s) * scale)
        self.embed = param(vocab, dim)
        self.layers = torch.nn.ModuleList()
        for _ in range(layers):
            l = torch.nn.Module()
            l.n1, l.n2 = torch.nn.Parameter(torch.ones(dim)), torch.nn.Parameter(torch.ones(dim))
            narrow = 0.02 / math.sqrt(2 * layers)
            l.qkv, l.out = param(3 * dim, dim), param(dim, dim, scale=narrow)
            l.up, l.down = param(experts, 2 * hidden, dim), param(experts, dim, hidden, scale=narrow)
            if experts > 1:
                l.router = param(experts, dim)
            self.layers.append(l)
        self.norm = torch.nn.Parameter(torch.ones(dim))
        half, length = dim // heads // 2, 2 * (most + 2)
        angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def rotate(self, x):
        half, n = x.shape[-1] // 2, x.shape[-2]
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * self.cos[:n] - b * self.sin[:n], a * self.sin[:n] + b * self.cos[:n]], -1)

    def feed(self, l, h):
        """h: tokens x dim. Returns the feed-forward part's output, and the loss that keeps experts busy."""
        def one(e, h):
            a, b = F.linear(h, l.up[e]).split(hidden, -1)
            return F.linear(F.silu(a) * b, l.down[e])
        if experts == 1:
            return one(0, h), 0.0
        gates = F.linear(h, l.router).softmax(-1)
        weights, chosen = gates.topk(active, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        out, share = torch.zeros_like(h), []
        for e in range(experts):
            rows, place = (chosen == e).nonzero(as_tuple=True)
            share.append(len(rows) / (len(h) * active))
            if len(rows):
                out = out.index_add(0, rows, one(e, h[rows]) * weights[rows, place][:, None])
        return out, experts * (torch.tensor(share) * gates.mean(0)).sum()

    def forward(self, tokens, there):
        """tokens, there: B x n, the latter says which are no padding. Returns hidden states of those, and the loss of the routers."""
        B, n = tokens.shape
        x, busy = F.dropout(self.embed[tokens], drop, self.training), 0.0
        for l in self.layers:
            q, k, v = F.linear(F.rms_norm(x, (dim,), l.n1, 1e-6), l.qkv).view(B, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
            o = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
            x = x + F.dropout(F.linear(o.transpose(1, 2).reshape(B, n, dim), l.out), drop, self.training)
            y, loss = self.feed(l, F.rms_norm(x, (dim,), l.n2, 1e-6)[there])
            busy = busy + loss
            x = x.index_put((there,), F.dropout(y, drop, self.training), accumulate=True)
        return F.rms_norm(x, (dim,), self.norm, 1e-6)[there], busy


def padded(rows):
    n = max(map(len, rows))
    tokens = torch.full((len(rows), n), BOS)
    there = torch.zeros(len(rows), n, dtype=torch.bool)
    for i, r in enumerate(rows):
        tokens[i, :len(r)], there[i, :len(r)] = torch.tensor(r), True
    return tokens, there


def row(items):
    return [BOS, SES] + [c for item in items for c in item]


model = Decoder()
matrices = [p for p in model.parameters() if p.dim() > 1]
others = [p for p in model.parameters() if p.dim() == 1]
solver = torch.optim.AdamW([{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0}], rate, (0.9, 0.98))
held_out = rng.sample(range(len(users)), min(2000, len(users)))
by_first = {}
for name, (a, b) in ids.items():
    by_first.setdefault(a, []).append(b)


@torch.no_grad()
def validate(beams=20):
    model.eval()
    nats = recall = ndcg = 0.0
    for at in range(0, len(held_out), 64):
        some = [users[u] for u in held_out[at:at + 64]]
        tokens, there = padded([row(s[:-2][-most:]) for s in some])
        h, _ = model(tokens, there)
        last = there.sum(1).cumsum(0) - 1
        first = F.linear(h[last], model.embed).log_softmax(-1)
        best = first[:, :codes].topk(beams, -1)
        rows, wanted = [], []
        for i, s in enumerate(some):
            base = row(s[:-2][-most:])
            rows += [base + [int(c)] for c in best.indices[i]] + [base + [s[-2][0]]]
        second = []
        for part in range(0, len(rows), 512):
            tokens, there = padded(rows[part:part + 512])
            h, _ = model(tokens, there)
            second.append(F.linear(h[there.sum(1).cumsum(0) - 1], model.embed).log_softmax(-1))
        second = torch.cat(second).view(len(some), beams + 1, vocab)
        for i, s in enumerate(some):
            want, seen = s[-2], set(s[:-2])
            nats -= float(first[i, want[0]] + second[i, beams, want[1]])
            found = []
            for j in range(beams):
                a = int(best.indices[i, j])
                found += [(float(best.values[i, j] + second[i, j, b]), (a, b)) for b in by_first.get(a, []) if (a, b) not in seen]
            found.sort(reverse=True)
            top = [item for _, item in found[:10]]
            if want in top:
                recall += 1
                ndcg += 1 / math.log2(top.index(want) + 2)
    model.train()
    n = len(held_out)
    return nats / n, recall / n, ndcg / n


steps, spent, trained = 0, 0.0, 0
print(f"{experts} experts of {hidden}, {active} active: {sum(p.numel() for p in model.parameters())} weights", flush=True)
for epoch in range(epochs):
    order = list(range(len(users)))
    rng.shuffle(order)
    # Of similar lengths, so that little is padding; batches in random order.
    order.sort(key=lambda u: min(len(users[u]) - 2, most) + rng.random() * 2)
    batches, now, tokens = [], [], 0
    for u in order:
        s = users[u][:-2]
        if len(s) > most:
            start = rng.randrange(len(s) - most + 1)
            s = s[start:start + most]
        now.append(row(s))
        tokens += len(now[-1])
        if tokens >= batch_tokens:
            batches.append(now)
            now, tokens = [], 0
    if now:
        batches.append(now)
    rng.shuffle(batches)
    total = 0.0
    for i, rows in enumerate(batches):
        begun = time.perf_counter()
        done = (epoch + i / len(batches)) / epochs
        for group in solver.param_groups:
            group["lr"] = rate * min(1, (steps + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * done))
        tokens, there = padded(rows)
        h, busy = model(tokens, there)
        follows = torch.full_like(tokens, -1)
        follows[:, 1:-1] = tokens[:, 2:]  # BOS foretells nothing; the SES and all codes the next code
        follows[~there.roll(-1, 1)] = -1
        follows[:, -1] = -1
        follows = follows[there]
        keep = follows >= 0
        loss = F.cross_entropy(F.linear(h[keep], model.embed), follows[keep])
        (loss + balance * busy).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        solver.step()
        solver.zero_grad()
        total += float(loss.detach())
        steps += 1
        trained += int(there.sum())
        spent += time.perf_counter() - begun
    if (epoch + 1) % 4 == 0 or epoch + 1 == epochs:
        nats, recall, ndcg = validate()
        print(f"epoch {epoch + 1}: loss {total / len(batches):.3f}, held out {nats:.3f} nats an item, Recall@10 {recall:.4f}, NDCG@10 {ndcg:.4f}; {trained / spent:.0f} tokens/s", flush=True)
