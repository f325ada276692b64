"""Write docs/reference/ from the code: python scripts/reference.py, or make reference"""

import sys
from pathlib import Path

from reference.pages import write_reference  # the folder beside this file

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "reference"
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for `train`, which is not installed under that name
    print(f"{len(write_reference(folder))} pages in {folder}")
