"""Write docs/museum.md from the docstrings of tests/museum/: python scripts/museum.py, or make reference"""

import sys
from pathlib import Path

from reference.museum import page  # the folder beside this file

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "museum.md"
    target.write_text(page(ROOT / "tests" / "museum"), encoding="utf-8")
    print(target)
