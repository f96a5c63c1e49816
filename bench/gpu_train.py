"""Steps of training on a GPU: random models of Qwen3's shapes, ours (train_bench) and PyTorch's (SDPA, bf16 weights; eager, and compiled layer
by layer) in one run on the same weights and tokens, InfoNCE between the first and the second half of the texts. LoRA: rank 16 on all linear
layers. Recovery: the first half are sounds, encoded before, and a projector 1280 -> 2048 -> hidden in front of the frozen model trains.

    python bench/gpu_train.py TRAIN_BENCH [--models 0.6B,2B] [--device cuda] [--directory DIR] [--inputs 64x256,512x32] [--compiled 64x256]
                              [--recovery 64x256] [--recovery-compiled 64x256]
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

from gpu_forward import compile_layers, lengths_of, make, ours, timed, tokens
from gpu_results import keep

audio_token, width, inner = 275, 1280, 2048


class LowRank(torch.nn.Module):
    """x W^T + x A^T B^T, as PEFT computes it; A and B in float32, multiplied in W's dtype."""

    def __init__(self, linear, rank=16):
        super().__init__()
        self.linear = linear
        self.a = torch.nn.Parameter(torch.empty(rank, linear.in_features, device=linear.weight.device).uniform_(-1, 1) / linear.in_features**0.5)
        self.b = torch.nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))

    def forward(self, x):
        return self.linear(x) + x @ self.a.to(x.dtype).T @ self.b.to(x.dtype).T


def replace_linear(model, by):
    for layer in model.layers:
        for part, names in ((layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")), (layer.mlp, ("gate_proj", "up_proj", "down_proj"))):
            for name in names:
                setattr(part, name, by(getattr(part, name)))


def with_sound(directory, hidden, device):
    """The model of a directory with an encoder of Whisper's kind (of one layer: its features are given) and a projector, in a directory of its
    own."""
    config = transformers.WhisperConfig(d_model=width, encoder_layers=1, encoder_attention_heads=20, encoder_ffn_dim=4 * width, decoder_layers=0,
                                        decoder_attention_heads=20, num_mel_bins=128)
    encoder = transformers.WhisperModel(config).encoder.to(torch.bfloat16)
    projector = torch.nn.Sequential(torch.nn.Linear(width, inner), torch.nn.GELU(), torch.nn.Linear(inner, hidden)).to(device)
    out = Path(f"{directory}-sound")
    out.mkdir(exist_ok=True)
    tensors = load_file(Path(directory) / "model.safetensors") | {f"audio_tower.{name}": value.contiguous() for name, value in encoder.state_dict().items()}
    for i, layer in ((1, projector[0]), (2, projector[2])):
        tensors |= {f"audio_projector.linear_{i}.weight": layer.weight.detach().cpu(), f"audio_projector.linear_{i}.bias": layer.bias.detach().cpu()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    whole = json.loads((Path(directory) / "config.json").read_text())
    whole |= {"audio_config": config.to_dict() | {"model_type": "whisper"}, "audio_token_id": audio_token, "audio_start_token_id": 272, "audio_end_token_id": 273}
    whole["audio_projector_config"] = {"input_size": width, "hidden_size": inner, "output_size": hidden, "hidden_act": "gelu", "bias": True}
    (out / "config.json").write_text(json.dumps(whole))
    return out, projector


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("train_bench")
    parser.add_argument("--models", default="0.6B")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--directory", default=tempfile.gettempdir())
    for name, default in (("inputs", "64x256,512x32"), ("compiled", "64x256,512x32"), ("recovery", "64x256"), ("recovery-compiled", "64x256")):
        parser.add_argument(f"--{name}", default=default, type=lambda text: [shape for shape in text.split(",") if shape])
    options = parser.parse_args()
    print(f"{'model':6} {'input':10} {'who':28} {'ms':>9} {'tokens/s':>10} {'loss':>8}")
    for name in options.models.split(","):
        directory = Path(options.directory) / f"conan-forward-{name}"
        model, _ = make(name, directory, options.device)

        def line(shape, who, seconds, loss):
            length, texts = map(int, shape.split("x"))
            print(f"{name:6} {shape:10} {who:28} {1e3 * seconds:9.2f} {length * texts / seconds:10.0f} {loss:8.4f}", flush=True)
            keep(model=name, input=shape, who=who, seconds=seconds, tokens=length * texts, loss=loss)

        def own(mode, where, shapes):
            for shape in shapes:  # each from the beginning
                answer = ours([options.train_bench, where, options.device, "bfloat16", mode], options.device, [shape])[shape]
                if "error" in answer:
                    print(f"{name:6} {shape:10} ours, {mode}: {answer['error']}", flush=True)
                    keep(model=name, input=shape, who=f"ours, {mode}", error=answer["error"])
                else:
                    line(shape, f"ours, {mode}", answer["seconds"], answer["loss"])

        def learn(vectors_of, half, trained):
            target = torch.arange(half, device=options.device)
            optimizer = torch.optim.AdamW(trained, lr=1e-4)
            losses = []

            def step():
                unit = torch.nn.functional.normalize(vectors_of().float(), dim=-1)
                loss = torch.nn.functional.cross_entropy(unit[:half] @ unit[half:].T / 0.05, target)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                losses.append(loss.detach())

            seconds, _ = timed(step, options.device)
            return seconds, float(losses[0])

        def last_of(**inputs):
            return model(**inputs, use_cache=False).last_hidden_state[:, -1]

        def recover(shape, who):
            """Sounds and texts apart: nothing is remembered of the texts, which nothing trained has a part in."""
            length, texts = map(int, shape.split("x"))
            half, table = texts // 2, model.get_input_embeddings()
            ids = (300 + (torch.arange(length * texts) * 7919 + 5) % 31700).reshape(texts, length).to(options.device)
            features = torch.sin(torch.arange(half * (length - 2) * width, dtype=torch.float64) * 0.37).float().reshape(half, length - 2, width).to(options.device)
            start = {key: value.clone() for key, value in projector.state_dict().items()}

            def vectors_of():
                embeddings = table(ids[:half]).clone()
                with torch.autocast(options.device.split(":")[0], torch.bfloat16):
                    embeddings[:, 1 : length - 1] = projector(features).to(embeddings.dtype)
                sounds = last_of(inputs_embeds=embeddings)
                return torch.cat([sounds, last_of(input_ids=ids[half:])])

            line(shape, f"{who}, recovery", *learn(vectors_of, half, list(projector.parameters())))
            projector.load_state_dict(start)  # for the next one's first loss

        model.requires_grad_(False).train()
        if options.recovery:
            where, projector = with_sound(directory, model.config.hidden_size, options.device)
            own("recovery", where, options.recovery)
            for shape in options.recovery:
                recover(shape, "PyTorch")
        own("lora", directory, options.inputs)
        replace_linear(model, LowRank)
        trained = [p for p in model.parameters() if p.requires_grad]

        def peer(shape, who):
            lengths = lengths_of(shape)
            ids, _ = tokens(lengths, options.device)
            line(shape, f"{who}, lora", *learn(lambda: last_of(input_ids=ids), len(lengths) // 2, trained))
            with torch.no_grad():
                for module in model.modules():  # likewise
                    if isinstance(module, LowRank):
                        module.b.zero_()

        for shape in options.inputs:
            peer(shape, "PyTorch")
        compile_layers(model)
        for shape in options.compiled:
            peer(shape, "PyTorch compiled")
        replace_linear(model, lambda low: low.linear)
        if options.recovery:
            for shape in options.recovery_compiled:
                recover(shape, "PyTorch compiled")


if __name__ == "__main__":
    main()
