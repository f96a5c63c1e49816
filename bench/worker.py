"""PyTorch and sentence-transformers as a contender; the same protocol as worker.mjs.
Usage: python worker.py KIND MODEL DTYPE THREADS, KIND torch, compiled or sentence-transformers"""

import json
import sys
import time

kind, model_path, dtype, threads = sys.argv[1:5]
import torch  # noqa: E402

torch.set_num_threads(int(threads))
torch.set_grad_enabled(False)
real_dtype = getattr(torch, dtype)


def memory():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024


def ids_of(count, vocabulary):
    state, out = 1, []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        out.append(5 + int(state / 2**32 * (vocabulary - 10)))
    return out


if kind == "sentence-transformers":
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_path, device="cpu", model_kwargs={"dtype": real_dtype})
    model.encode(["first"])
else:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(model_path, dtype=real_dtype).eval()
    model.config.use_cache = False
    if kind == "compiled":
        model = torch.compile(model, dynamic=False)
print(json.dumps({"ready": True, "memory": memory()}), flush=True)

for line in sys.stdin:
    request = json.loads(line)
    times = []
    if request["op"] == "tokens":
        shape = (request["batch"], request["length"])
        ids = torch.tensor(ids_of(shape[0] * shape[1], request["vocabulary"])).reshape(shape)
        mask = torch.ones_like(ids)

        def run():
            return torch.nn.functional.normalize(model(input_ids=ids, attention_mask=mask).last_hidden_state.float().mean(1), dim=1)

        run()
        run()
        until = time.perf_counter() + request["ms"] / 1000
        while True:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
            if time.perf_counter() >= until:
                break
    else:
        start = time.perf_counter()
        model.encode(request["texts"], batch_size=32, show_progress_bar=False)
        times.append(time.perf_counter() - start)
    print(json.dumps({"times": times, "memory": memory()}), flush=True)
