"""The peer of bench/train.ts: one step for each line read, answered with its seconds and the process's memory.

    python train_peer.py MODEL projector|projector-whole|lora DTYPE THREADS eager|compiled DEVICE HALF WIDTH
"""

import json
import re
import sys
import time

import torch
import transformers as T

directory, mode, dtype, threads, form = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3]), int(sys.argv[4]), sys.argv[5]
device, half, width = sys.argv[6], int(sys.argv[7]), int(sys.argv[8])
torch.set_default_device(device)
torch.set_num_threads(threads)
torch.manual_seed(0)
model = T.AutoModel.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa").to(device).train()
model.requires_grad_(False)
ids = (300 + torch.arange(2 * half * 64) * 37 % 1500).reshape(2 * half, 64)
features = torch.sin(torch.arange(half * 62 * width) * 0.37).reshape(half, 62, width)
projector = torch.nn.Sequential(torch.nn.Linear(width, 768), torch.nn.GELU(), torch.nn.Linear(768, model.config.hidden_size))
if mode == "lora":
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
    trained = [p for p in model.parameters() if p.requires_grad]
else:
    trained = list(projector.parameters())
optimizer = torch.optim.AdamW(trained, lr=1e-4)
table = model.get_input_embeddings()


def vectors():
    if mode == "lora":
        return model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
    if mode == "projector-whole":  # sounds and texts as one batch
        embeddings = table(ids).clone()
        embeddings[:half, 1:63] = projector(features).to(dtype)
        return model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, -1]
    # Sounds and texts apart, as sentence-transformers runs its columns: autograd then keeps nothing of the texts, which nothing trained touches.
    embeddings = table(ids[:half]).clone()
    embeddings[:, 1:63] = projector(features).to(dtype)
    sounds = model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, -1]
    return torch.cat([sounds, model(input_ids=ids[half:], use_cache=False).last_hidden_state[:, -1]])


if form == "compiled":
    vectors = torch.compile(vectors)


def memory():
    return int(re.search(r"VmRSS:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024


for _ in sys.stdin:
    start = time.perf_counter()
    unit = torch.nn.functional.normalize(vectors().float(), dim=-1)
    scores = unit[:half] @ unit[half:].T / 0.05
    target = torch.arange(half)
    loss = (torch.nn.functional.cross_entropy(scores, target) + torch.nn.functional.cross_entropy(scores.T, target)) / 2
    held = memory()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    if device != "cpu":
        torch.cuda.synchronize()
    print(json.dumps(dict(seconds=time.perf_counter() - start, memory=max(held, memory()), loss=float(loss.detach()))), flush=True)
