"""The peer of the merge benchmark: PyTorch and safetensors, tensor by tensor, as a person would write it.

    python bench/merge_peer.py task_arithmetic|ties DIR OUT THREADS
"""
import json
import resource
import sys
import time

import torch
from safetensors import safe_open
from safetensors.torch import save_file

method, directory, out, threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
weights, density = [0.5, 0.3, 0.2], 0.2
torch.set_num_threads(threads)
torch.set_grad_enabled(False)
start = time.perf_counter()
files = [safe_open(f"{directory}/{name}/model.safetensors", "pt") for name in ("base", "s1", "s2", "s3")]
merged = {}
for name in files[0].keys():
    base = files[0].get_tensor(name).float()
    deltas = [f.get_tensor(name).float() - base for f in files[1:]]
    if method == "ties":
        k = max(1, int(density * base.numel()))
        for i, d in enumerate(deltas):
            mask = torch.zeros(base.numel())
            mask[torch.topk(d.abs().flatten(), k, sorted=False).indices] = 1
            deltas[i] = weights[i] * d * mask.view_as(d)
        sign = torch.where(sum(deltas) >= 0, 1.0, -1.0)
        agree = [d.sign() == sign for d in deltas]
        divisor = sum(w * a for w, a in zip(weights, agree))
        change = sum(d * a for d, a in zip(deltas, agree)) / torch.where(divisor.abs() < 1e-8, 1.0, divisor)
    else:
        change = sum(w * d for w, d in zip(weights, deltas))
    merged[name] = (base + change).to(torch.bfloat16)
save_file(merged, out, {"format": "pt"})
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "rssMB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
