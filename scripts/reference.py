"""Write docs/reference/ from the code: python scripts/reference.py, or make reference"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `train`, which is not installed under that name

from reference.pages import write_reference  # noqa: E402  # the folder beside this file

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "reference"
    print(f"{len(write_reference(folder))} pages in {folder}")
