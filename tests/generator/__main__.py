"""Runs the generator for a while: `python -m tests.generator --minutes 60`."""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import SystemRandom

from tests.generator.drive import PROFILES, Mismatch, Run

STEPS = 40


def table(counts: Counter[tuple[str, str]]) -> str:
    """How often each kind of edit had each verdict, in Markdown."""
    verdicts = sorted({verdict for _, verdict in counts})
    rows = [["edit", *verdicts]]
    for kind in sorted({kind for kind, _ in counts}):
        rows.append([kind.replace("_", " "), *(str(counts[kind, verdict] or "") for verdict in verdicts)])
    rows.append(["all", *(str(sum(counts[key] for key in counts if key[1] == verdict)) for verdict in verdicts)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---|" + "--:|" * len(verdicts), *lines[1:]])


def main() -> int:
    """Runs programs until the time is over; returns 1 if one of them did what the model does not allow."""
    parser = argparse.ArgumentParser(prog="python -m tests.generator", description=__doc__)
    parser.add_argument("--minutes", type=float, default=0, help="how long; without it, one program")
    parser.add_argument("--seed", type=int, help="the first program's seed; each further one has the next number")
    parser.add_argument("--steps", type=int, default=STEPS, help="how many edits each program gets")
    parser.add_argument("--unoptimised", action="store_true", help="no optimised programs")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    arguments = parser.parse_args()
    seed = SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    # A program that is ended is not to leave what it built, and a developer's Ctrl-C is to mean what it says.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    root = Path(tempfile.mkdtemp(prefix="hotpatchd-generator-"))
    counts: Counter[tuple[str, str]] = Counter()
    began, programs, failed = time.monotonic(), 0, 0
    try:
        while programs == 0 or time.monotonic() < began + arguments.minutes * 60:
            run = Run(seed, root / str(seed), profiles=("",) if arguments.unoptimised else PROFILES, counts=counts)
            try:
                run.run(arguments.steps)
                shutil.rmtree(run.directory)
            except Mismatch as error:
                again = f"--seed {seed} --steps {arguments.steps}{' --unoptimised' * arguments.unoptimised}"
                print(f"{error}\nagain: python -m tests.generator {again}", file=sys.stderr)
                failed += 1
                if not arguments.keep_going:
                    break
            programs += 1
            seed += 1
    except KeyboardInterrupt:
        print("interrupted; until then:", file=sys.stderr)
    finally:
        if not failed:
            shutil.rmtree(root)
    minutes = (time.monotonic() - began) / 60
    edits = sum(counts.values())
    print(f"{table(counts)}\n\n{programs} programs, {edits} edits in {minutes:.1f} minutes; {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
