"""Where the benchmarks of a GPU leave what they measured, beside what they print; and, as a command, ours beside PyTorch's by line:

    python bench/gpu_results.py FILE.jsonl...
"""

import json
import os
import sys


def keep(**values):
    """A line of JSON more in the file that CONAN_BENCH_RESULTS names, where it names one."""
    if path := os.environ.get("CONAN_BENCH_RESULTS"):
        with open(path, "a") as file:
            print(json.dumps(values), file=file)


def passes(rows):
    """By model, input and what is done: milliseconds of ours, and of each peer with how many times as long that is."""
    groups = {}
    for row in rows:
        who, _, what = row["who"].partition(", ")
        groups.setdefault((row["model"], row["input"], what or "forward"), {})[who] = row
    for key, by_who in groups.items():
        own = by_who.pop("ours", {"error": "not measured"})
        if "error" in own:
            yield " ".join(key), own["error"]
            continue
        share = f", {100 * own['share']:.0f} % of the ceiling" if "share" in own else ""
        peers = "".join(f"; {who} {1e3 * row['seconds']:.1f} ({row['seconds'] / own['seconds']:.2f}x)" for who, row in by_who.items())
        yield " ".join(key), f"{1e3 * own['seconds']:.1f} ms{share}{peers}"


def operations(own, peer):
    """By operation: the rates of both, and of merges beside a copy's."""
    copy = next((row["rate"] for name, row in peer.items() if name.startswith("copy")), None)
    for name, row in own.items():
        who, other = ("a copy", copy) if name.startswith("merge") else ("PyTorch", peer.get(name, {}).get("rate"))
        if other:
            yield name, f"{row['rate']:.2f} {row['unit']}; {who} {other:.2f} ({row['rate'] / other:.2f}x)"


def main():
    rows = [json.loads(line) for path in sys.argv[1:] for line in open(path)]
    timed = {what: {row["name"]: row for row in rows if row.get("bench") == what} for what in ("cuda_bench", "gpu_peer")}
    for name, text in [*passes([row for row in rows if "who" in row]), *operations(timed["cuda_bench"], timed["gpu_peer"])]:
        print(f"{name:36} {text}")


if __name__ == "__main__":
    main()
