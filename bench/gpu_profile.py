"""Where the time of a forward pass and of a step of LoRA training goes on a GPU, by kernel, as Nsight Compute's command line (ncu) measures each
alone: random models of few layers of Qwen3's shapes, one run in its steady state.

    python bench/gpu_profile.py FORWARD_BENCH TRAIN_BENCH [--layers 4] [--forward 2B:512x64] [--train 0.6B:64x256] [--directory DIR]
"""

import argparse
import collections
import csv
import re
import subprocess
import tempfile
from pathlib import Path

import gpu_forward
from gpu_results import keep

time, cycles = "gpu__time_duration.sum", "sm__cycles_elapsed.max"


def launches(bench, mode, model, layers, shape, directory):
    """Kernel, nanoseconds and cycles of every launch of a bench."""
    hidden, _, *rest = gpu_forward.shapes[model]
    gpu_forward.shapes["few"] = (hidden, layers, *rest)
    where = Path(directory) / f"conan-profile-{model}"
    gpu_forward.make("few", where, "cuda")
    command = ["ncu", "--clock-control", "none", "--metrics", f"{time},{cycles}", "--csv", bench, where, "cuda", "bfloat16", *mode, shape]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise SystemExit("ncu said:\n" + "\n".join(lines[-5:]))
    found = {}
    for row in csv.DictReader(lines[start:]):
        name = re.sub(r"\(anonymous namespace\)::|unnamed>::|conan::cuda::|<unnamed>::|^void ", "", row["Kernel Name"]).split("(")[0]
        found.setdefault(int(row["ID"]), [name, 0, 0])[1 if row["Metric Name"] == time else 2] = float(row["Metric Value"].replace(",", ""))
    return [found[i] for i in sorted(found)]


def last_run(all_launches):
    """What comes again and again at the end."""
    names = [launch[0] for launch in all_launches]
    for n in range(20, len(names) // 2 + 1):
        if names[-n:] == names[-2 * n : -n]:
            return all_launches[-n:]
    return all_launches


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("forward_bench")
    parser.add_argument("train_bench")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--forward", default="2B:512x64")
    parser.add_argument("--train", default="0.6B:64x256")
    parser.add_argument("--directory", default=tempfile.gettempdir())
    options = parser.parse_args()
    for bench, mode, what in ((options.forward_bench, [], options.forward), (options.train_bench, ["lora"], options.train)):
        if not what:
            continue
        model, shape = what.split(":")
        run = last_run(launches(bench, mode, model, options.layers, shape, options.directory))
        sums = collections.defaultdict(lambda: [0, 0, 0])
        for name, nanoseconds, elapsed in run:
            for i, value in enumerate((nanoseconds / 1e6, elapsed / 1e6, 1)):
                sums[name][i] += value
        total = sum(value[0] for value in sums.values())
        print(f"{Path(bench).name} {model}, {options.layers} layers, {shape}: {total:.2f} ms in {len(run)} launches")
        for name, (milliseconds, millions, count) in sorted(sums.items(), key=lambda item: -item[1][0]):
            print(f"{milliseconds:9.3f} ms {100 * milliseconds / total:5.1f} % {millions:9.2f} M cycles {count:5}  {name[:100]}", flush=True)
            keep(bench="gpu_profile", profiled=Path(bench).name, model=model, input=shape, layers=options.layers, kernel=name, milliseconds=milliseconds,
                 launches=count)


if __name__ == "__main__":
    main()
