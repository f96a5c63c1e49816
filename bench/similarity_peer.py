"""The peer of bench/similarity.mjs: reads lines "rows columns dimensions", answers with the seconds of cos_sim and of NumPy's plain product.

    python similarity_peer.py THREADS
"""

import sys
import time

import torch
from sentence_transformers.util import cos_sim

torch.set_num_threads(int(sys.argv[1]))


def seconds(work):
    work()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.5:
        work()
        count += 1
    return (time.perf_counter() - start) / count


print("ready", flush=True)
for line in sys.stdin:
    rows, cols, dimensions = map(int, line.split())
    a, b = torch.rand(rows, dimensions) - 0.5, torch.rand(cols, dimensions) - 0.5
    x, y = a.numpy(), b.numpy().T
    print(seconds(lambda: cos_sim(a, b)), seconds(lambda: x @ y), flush=True)
