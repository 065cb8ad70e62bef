"""Reads token batches that "onerec snapshot export" wrote, and trains on them in PyTorch: what a trainer in
Python needs to know.

    python tokens.py TOKENS.arrow VERSION_FOLDER [STEPS]

Prints the mean loss (nats a token) of the checkpoint's decoder over the file, then, if asked to, trains for
some steps and prints the loss of each. Needs pyarrow, torch and safetensors; checkpoint.py is beside it.
"""
import sys

import pyarrow as pa
import torch
import torch.nn.functional as F

import checkpoint


def rows(file):
    """Yields tokens and weights of each row. The file is mapped into memory; a batch is copied once, since PyTorch wants
    memory that it could write to."""
    with pa.memory_map(file) as f:
        reader = pa.ipc.open_file(f)
        for i in range(reader.num_record_batches):
            batch = reader.get_batch(i)
            columns = []
            for name in ("tokens", "weights"):
                column = batch.column(name)
                columns.append((torch.from_numpy(column.values.to_numpy().copy()), column.offsets.to_pylist()))
            (tokens, at), (weights, _) = columns
            for a, b in zip(at, at[1:]):
                yield tokens[a:b].long(), weights[a:b]


def loss(config, w, tokens, weights):
    """Sum of the weighted losses of a row's tokens, and of their weights; weights[i] is of tokens[i], as predicted
    from those before it."""
    logp = F.log_softmax(checkpoint.logits(config, w, tokens), -1)
    own = logp[:-1].gather(1, tokens[1:, None])[:, 0]
    return -(own * weights[1:]).sum(), weights.sum()


if __name__ == "__main__":
    config, w = checkpoint.load(sys.argv[2])
    total, weight = 0.0, 0.0
    for tokens, weights in rows(sys.argv[1]):
        with torch.no_grad():
            a, b = loss(config, w, tokens, weights)
        total, weight = total + a.item(), weight + b.item()
    print(total / weight)
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    for tensor in w.values():
        tensor.requires_grad_()
    optimizer = torch.optim.AdamW(w.values(), lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        parts = [loss(config, w, tokens, weights) for tokens, weights in rows(sys.argv[1])]
        value = sum(a for a, _ in parts) / sum(b for _, b in parts)
        value.backward()
        optimizer.step()
        print(value.item())
