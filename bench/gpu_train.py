"""Steps of LoRA training on a GPU: random models of Qwen3's shapes, ours (train_bench) and PyTorch's (SDPA, bf16 weights; eager, and
compiled layer by layer) in one run on the same weights and tokens: rank 16 on all linear layers, InfoNCE between the first and the second
half of the texts.

    python bench/gpu_train.py TRAIN_BENCH [--models 0.6B,2B] [--device cuda] [--directory DIR] [--inputs 64x256,512x32] [--compiled 64x256]
"""

import argparse
import tempfile
from pathlib import Path

import torch

from gpu_forward import compile_layers, lengths_of, make, ours, timed, tokens


class LowRank(torch.nn.Module):
    """x W^T + x A^T B^T, as PEFT computes it; A and B in float32, multiplied in W's dtype."""

    def __init__(self, linear, rank=16):
        super().__init__()
        self.linear = linear
        self.a = torch.nn.Parameter(torch.empty(rank, linear.in_features, device=linear.weight.device).uniform_(-1, 1) / linear.in_features**0.5)
        self.b = torch.nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))

    def forward(self, x):
        return self.linear(x) + x @ self.a.to(x.dtype).T @ self.b.to(x.dtype).T


def wrapped(model):
    model.requires_grad_(False)
    for layer in model.layers:
        for part, names in ((layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")), (layer.mlp, ("gate_proj", "up_proj", "down_proj"))):
            for name in names:
                setattr(part, name, LowRank(getattr(part, name)))
    return model.train()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("train_bench")
    parser.add_argument("--models", default="0.6B")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--directory", default=tempfile.gettempdir())
    parser.add_argument("--inputs", default="64x256,512x32")
    parser.add_argument("--compiled", default="64x256,512x32")
    options = parser.parse_args()
    print(f"{'model':6} {'input':10} {'who':18} {'ms':>9} {'tokens/s':>10} {'loss':>8}")
    for name in options.models.split(","):
        directory = Path(options.directory) / f"conan-forward-{name}"
        model, _ = make(name, directory, options.device)
        wrapped(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        inputs = options.inputs.split(",")

        def line(shape, who, seconds, loss):
            length, texts = map(int, shape.split("x"))
            print(f"{name:6} {shape:10} {who:18} {1e3 * seconds:9.2f} {length * texts / seconds:10.0f} {loss:8.4f}", flush=True)

        for shape in inputs:  # each from the beginning
            answer = ours(options.train_bench, directory, options.device, [shape])[shape]
            if "error" in answer:
                print(f"{name:6} {shape:10} ours: {answer['error']}", flush=True)
            else:
                line(shape, "ours", answer["seconds"], answer["loss"])

        def peer(shape, who):
            lengths = lengths_of(shape)
            ids, _ = tokens(lengths, options.device)
            half = len(lengths) // 2
            target = torch.arange(half, device=options.device)
            optimizer = torch.optim.AdamW(trained, lr=1e-4)
            first = []

            def step():
                vectors = model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
                unit = torch.nn.functional.normalize(vectors.float(), dim=-1)
                loss = torch.nn.functional.cross_entropy(unit[:half] @ unit[half:].T / 0.05, target)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                first.append(loss.detach())

            seconds, _ = timed(step, options.device)
            line(shape, who, seconds, float(first[0]))
            with torch.no_grad():
                for module in model.modules():  # for the next one's first loss
                    if isinstance(module, LowRank):
                        module.b.zero_()

        for shape in inputs:
            peer(shape, "PyTorch")
        if options.compiled:
            compile_layers(model)
            for shape in options.compiled.split(","):
                peer(shape, "PyTorch compiled")


if __name__ == "__main__":
    main()
