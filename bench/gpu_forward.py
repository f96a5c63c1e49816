"""Whole forward passes on a GPU: random models of Qwen3's shapes, ours (forward_bench, packed) and PyTorch's (SDPA, bf16, padded; eager, and
compiled layer by layer) in one run on the same weights and tokens.

    python bench/gpu_forward.py FORWARD_BENCH [--models 0.6B,2B] [--device cuda] [--ceiling 790] [--directory DIR] [--inputs 8-56x4096,128-896x64]
                                [--compiled 512x64,128-896x64]
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import transformers

from gpu_results import keep

# hidden, layers, heads, key heads, head size, MLP; the language models of Qwen3-0.6B, Qwen3-VL-2B, Qwen3-8B, and a quarter of the last one's
# layers, which is made and written in a quarter of the time.
shapes = {"pico": (64, 2, 4, 2, 16, 128), "0.6B": (1024, 28, 16, 8, 128, 3072), "2B": (2048, 28, 16, 8, 128, 6144), "8B": (4096, 36, 32, 8, 128, 12288),
          "8B-9": (4096, 9, 32, 8, 128, 12288)}  # fmt: skip


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


def lengths_of(shape):
    """Tokens of each text, as forward_bench has them."""
    length, texts = shape.split("x")
    low, high = map(int, (length.split("-") * 2)[:2])
    return [low + i * 7919 % (high - low + 1) for i in range(int(texts))]


def flops(name, weights, lengths):
    _, layers, heads, _, head, _ = shapes[name]
    # Causal attention: half of two products of length x length.
    return sum(n * (2 * weights + layers * 2 * n * heads * head) for n in lengths)


def timed(run, device):
    times, first = [], time.perf_counter()
    for i in range(7):
        if i >= 4 and time.perf_counter() - first > 2:
            break
        start = time.perf_counter()
        out = run()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times), out


def tokens(lengths, device):
    """Ids and mask, padded at the end."""
    ids, mask = (torch.zeros(len(lengths), max(lengths), dtype=torch.long) for _ in range(2))
    at = 0
    for i, n in enumerate(lengths):
        ids[i, :n] = (torch.arange(at, at + n) * 7919 + 5) % 32000
        mask[i, :n] = 1
        at += n
    return ids.to(device), mask.to(device) if min(lengths) < max(lengths) else None


def compile_layers(model):
    """One graph for all layers, which are alike: compiling takes seconds and not minutes. Each shape has its own."""
    for layer in model.layers:
        layer.compile(dynamic=False)
    return model


def ours(command, device, inputs):
    """What a native bench answers, by shape; its error for those it did not come to."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    done = subprocess.run([*command, *inputs], capture_output=True, text=True)
    answers = {answer["shape"]: answer for answer in map(json.loads, done.stdout.splitlines())}
    return {shape: answers.get(shape, {"error": done.stderr.strip()}) for shape in inputs}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("forward_bench")
    parser.add_argument("--models", default="0.6B,2B")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ceiling", type=float, default=790, help="TFLOP/s")
    parser.add_argument("--directory", default=tempfile.gettempdir())
    parser.add_argument("--inputs", default="8-56x4096,512x64,128-896x64,4096x8")
    parser.add_argument("--compiled", default="512x64,128-896x64")
    options = parser.parse_args()
    print(f"{'model':6} {'input':10} {'who':18} {'ms':>9} {'tokens/s':>10} {'TFLOP/s':>8} {'share':>6}")
    for name in options.models.split(","):
        directory = Path(options.directory) / f"conan-forward-{name}"
        model, weights = make(name, directory, options.device)
        inputs = options.inputs.split(",")
        answers = ours([options.forward_bench, directory, options.device, "bfloat16"], options.device, inputs)

        def line(shape, who, seconds, note=""):
            lengths = lengths_of(shape)
            rate = flops(name, weights, lengths) / seconds / 1e12
            print(f"{name:6} {shape:10} {who:18} {1e3 * seconds:9.2f} {sum(lengths) / seconds:10.0f} {rate:8.1f} {100 * rate / options.ceiling:5.1f}%  {note}",
                  flush=True)
            keep(model=name, input=shape, who=who, seconds=seconds, tokens=sum(lengths), tflops=rate, share=rate / options.ceiling)

        def peer(shape, who):
            lengths = lengths_of(shape)
            ids, mask = tokens(lengths, options.device)
            rows, last = torch.arange(len(lengths), device=options.device), torch.tensor(lengths, device=options.device) - 1
            with torch.inference_mode():
                seconds, states = timed(lambda: model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[rows, last], options.device)
            line(shape, who, seconds)
            return torch.nn.functional.normalize(states[0].float(), dim=0)[:4].tolist()

        for shape in inputs:
            want, answer = peer(shape, "PyTorch"), answers[shape]
            if "error" in answer:
                print(f"{name:6} {shape:10} ours: {answer['error']}", flush=True)
                keep(model=name, input=shape, who="ours", error=answer["error"])
                continue
            worst = max(abs(a - b) for a, b in zip(answer["vector"], want))
            line(shape, "ours", answer["seconds"], f"first components differ by {worst:.4f}")
        if options.compiled:
            compile_layers(model)
            for shape in options.compiled.split(","):
                peer(shape, "PyTorch compiled")
        del model


if __name__ == "__main__":
    main()
