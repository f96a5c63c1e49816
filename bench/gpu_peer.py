"""What PyTorch reaches on this GPU at the shapes of cuda_bench: the bandwidth of a copy, bf16 products (its vendor's library), attention (SDPA).

    python bench/gpu_peer.py
"""

import statistics

import torch
import torch.nn.functional as F

from gpu_results import keep

products = [(16, 4096, 4096), (512, 1024, 3072), (8192, 1024, 3072), (8192, 4096, 4096), (16384, 4096, 12288)]
lengths = [(32, 1024), (64, 256), (128, 64), (512, 16), (2048, 4), (8192, 1)]
heads, kv_heads, D = 16, 8, 128


def median(run):
    """Seconds of a run, as cuda_bench takes them: in fives, after two fives to warm up."""
    times = []
    for i in range(7):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(5):
            run()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(start.elapsed_time(end) / 5e3)
    return statistics.median(times)


def line(name, work, seconds, unit="TFLOP/s"):
    print(f"{name:34} {1e3 * seconds:10.3f} {work / seconds / 1e12:10.2f} {unit}", flush=True)
    keep(bench="gpu_peer", name=name, seconds=seconds, rate=work / seconds / 1e12, unit=unit)


def main():
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    big = torch.randn(1 << 30, device="cuda")
    other = torch.empty_like(big)
    line("copy 4 GiB", 2 * big.numel() * 4, median(lambda: other.copy_(big)), "TB/s")
    del big, other
    for rows, inner, out in products:
        x, w = (torch.randn(n, inner, device="cuda", dtype=torch.bfloat16) for n in (rows, out))
        line(f"linear bf16 rows {rows}x{inner}x{out}", 2 * rows * inner * out, median(lambda: F.linear(x, w)))
    rows, hidden, inner = 32768, 2048, 6144
    x = torch.randn(rows, inner, device="cuda", dtype=torch.bfloat16)
    y = torch.randn(rows, hidden, device="cuda", dtype=torch.bfloat16)
    for name, into, out, added in [("queries, keys, values", hidden, 2 * hidden, False), ("x += heads", hidden, hidden, True),
                                   ("gate and up", hidden, 2 * inner, False), ("x += down", inner, hidden, True)]:  # fmt: skip
        w, a = torch.randn(out, into, device="cuda", dtype=torch.bfloat16) * 0.02, x[:, :into].contiguous()
        line(f"layer: {name}", 2 * rows * into * out, median((lambda: y.addmm_(a, w.T)) if added else (lambda: F.linear(a, w))))
    del x, y, w, a
    for length, sequences in lengths:
        q = torch.randn(sequences, heads, length, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        k, v = (torch.randn(sequences, kv_heads, length, D, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        attend = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        work = 2 * sequences * length * length * heads * D
        with torch.no_grad():
            line(f"attention bf16 rows {length} x {sequences}", work, median(attend))
        y = attend()
        dy = torch.randn_like(y)
        line(f"attention back bf16 rows {length} x {sequences}", 2.5 * work, median(lambda: y.backward(dy, retain_graph=True)))


if __name__ == "__main__":
    main()
