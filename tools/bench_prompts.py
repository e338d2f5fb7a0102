#!/usr/bin/env python
"""Time and memory of a run's prompts: reading the corpus, encoding it into a store, reading from there what views need.

    python -m tools.bench_prompts [--count 100000] [--reads 2000] --out FOLDER

Texts are encoded by the built-in prior, one a prompt (`Plain`); the folder keeps the store, so that a second call reads only.
"""

import argparse
import resource
from itertools import product
from pathlib import Path
from time import perf_counter

from mpiprop.conditioning.store import Store, Stored
from mpiprop.conditioning.text import Plain, TextConditions
from mpiprop.config.prompts import Corpus, read_prompts
from mpiprop.core.streams import Streams, uniform
from mpiprop.priors.diffusion import StableDiffusion


def resident() -> float:
    """Returns the MB that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--reads", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pairs = product(read_prompts("builtin"), range(args.count))
    (args.out / "prompts.txt").write_text("\n".join(f"{pair}, number {i}" for _, (pair, i) in zip(range(args.count), pairs)))
    prior, plain, begun, before = StableDiffusion("cpu", model="builtin"), Plain(), perf_counter(), resident()
    prompts = Corpus(str(args.out / "prompts.txt")).read().texts
    print(f"{len(prompts):,} prompts read: {perf_counter() - begun:.1f} s, {resident() - before:.0f} MB")
    begun, before = perf_counter(), resident()
    store = Store(args.out, lambda: (text for prompt in prompts for text in plain.strings(prompt)), "builtin")
    print(f"index: {perf_counter() - begun:.1f} s, {resident() - before:.0f} MB")
    begun, missing = perf_counter(), store.missing
    store.write(prior)
    size = sum(path.stat().st_size for path in store.folder.glob("*.h5"))
    print(f"{missing:,} texts encoded and written: {perf_counter() - begun:.1f} s, {size / 1e9:.2f} GB on disk")
    begun, before = perf_counter(), resident()
    for place in (uniform(Streams(0, 0)("prompts"), args.reads) * len(prompts)).long().tolist():
        TextConditions.of(Stored(prior, store), plain, prompts[place])
    seconds = (perf_counter() - begun) / args.reads
    print(f"{args.reads:,} prompts at random: {1e3 * seconds:.2f} ms each, {resident() - before:.0f} MB more; "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB at the peak")


if __name__ == "__main__":
    main()
