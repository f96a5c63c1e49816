"""Whole forward passes on a GPU: random models of Qwen3's shapes, ours (forward_bench) and PyTorch's (SDPA, bf16, eager and compiled) in
turn on the same weights and tokens. Short texts are as good as padded here: all of one length.

    python bench/gpu_forward.py FORWARD_BENCH [--models 0.6B,2B] [--device cuda] [--ceiling 790] [--directory DIR] [--no-compile]
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import transformers

# hidden, layers, heads, key heads, head size, MLP; the language models of Qwen3-0.6B, Qwen3-VL-2B, Qwen3-8B.
shapes = {"pico": (64, 2, 4, 2, 16, 128), "0.6B": (1024, 28, 16, 8, 128, 3072), "2B": (2048, 28, 16, 8, 128, 6144), "8B": (4096, 36, 32, 8, 128, 12288)}
inputs = ["32x4096", "512x64", "4096x8"]


def make(name, directory, device):
    hidden, layers, heads, key_heads, head, inner = shapes[name]
    config = transformers.Qwen3Config(vocab_size=32000, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=key_heads,
                                      head_dim=head, intermediate_size=inner, max_position_embeddings=32768, tie_word_embeddings=True)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModel.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    model.save_pretrained(directory)
    weights = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    return model, weights


def flops(name, weights, length, sequences):
    _, layers, heads, _, head, _ = shapes[name]
    # Causal attention: half of two products of length x length.
    return sequences * length * (2 * weights + layers * 2 * length * heads * head)


def timed(run, device):
    times = []
    for i in range(7):
        start = time.perf_counter()
        out = run()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times), out


def tokens(length, texts, device):
    return ((torch.arange(length * texts) * 7919 + 5) % 32000).reshape(texts, length).to(device)


def ours(bench, directory, device, shape):
    """What a native bench answers for a shape, or its error, by each kind of product; for a table's column `who`."""
    torch.cuda.empty_cache()
    for gemm in ["wgmma"] if device.startswith("cuda") else [""]:
        done = subprocess.run([bench, directory, device, "bfloat16", shape], capture_output=True, text=True, env={**os.environ, "CONAN_CUDA_GEMM": gemm})
        answer = {"error": done.stderr.strip()} if done.returncode else json.loads(done.stdout)
        yield f"ours {gemm}".strip(), answer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("forward_bench")
    parser.add_argument("--models", default="0.6B,2B")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ceiling", type=float, default=790, help="TFLOP/s")
    parser.add_argument("--directory", default=tempfile.gettempdir())
    parser.add_argument("--inputs", default=",".join(inputs))
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    print(f"{'model':6} {'input':10} {'who':18} {'ms':>9} {'tokens/s':>10} {'TFLOP/s':>8} {'share':>6}")
    for name in options.models.split(","):
        directory = Path(options.directory) / f"conan-forward-{name}"
        model, weights = make(name, directory, options.device)
        contenders = {"PyTorch": model}
        if not options.no_compile:
            contenders["PyTorch compiled"] = torch.compile(model)
        for shape in options.inputs.split(","):
            length, sequences = map(int, shape.split("x"))
            ids = tokens(length, sequences, options.device)
            rows, want = [], None
            for who, contender in contenders.items():
                with torch.inference_mode():
                    seconds, states = timed(lambda: contender(input_ids=ids, use_cache=False).last_hidden_state[:, -1], options.device)
                rows.append((who, seconds, ""))
                want = torch.nn.functional.normalize(states[0].float(), dim=0)[:4].cpu()
            for who, answer in ours(options.forward_bench, directory, options.device, shape):
                if "error" in answer:
                    rows.append((who, float("nan"), answer["error"]))
                    continue
                worst = max(abs(a - b) for a, b in zip(answer["vector"], want.tolist()))
                rows.append((who, answer["seconds"], f"first components differ by {worst:.4f}"))
            for who, seconds, note in rows:
                rate = flops(name, weights, length, sequences) / seconds / 1e12
                print(f"{name:6} {shape:10} {who:18} {1e3 * seconds:9.2f} {length * sequences / seconds:10.0f} {rate:8.1f} {100 * rate / options.ceiling:5.1f}%  {note}", flush=True)


if __name__ == "__main__":
    main()
