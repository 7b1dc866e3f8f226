"""Every question after the other, each in a process of its own: `python -m benchmarks [--quick] [--write]`."""

import subprocess
import sys
from pathlib import Path

QUESTIONS = (
    *("attention", "peers", "models", "decode", "memory", "encoders", "rotary"),
    *("selective_scan", "ssd", "wkv", "s4", "lru", "images", "gpu"),
)


def main() -> int:
    failed = []
    for question in QUESTIONS:
        print(f"\n## {question}\n", flush=True)
        script = Path(__file__).with_name(f"{question}.py")
        if subprocess.run([sys.executable, str(script), *sys.argv[1:]], check=False).returncode:
            failed.append(question)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
