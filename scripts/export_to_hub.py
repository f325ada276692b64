"""Send a run to the Hub: python scripts/export_to_hub.py runs/NAME exports/NAME USER/NAME --licence mit"""

import argparse
import sys
from pathlib import Path

from ldm.errors import UserError
from ldm.export.artefact import export
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import load_source
from ldm.export.hub.upload import push_folder


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Export a run, verify the export, and send it to the Hub.")
    parser.add_argument("run", type=Path, help="the folder of a run or a model")
    parser.add_argument("dest", type=Path, help="folder for the export; it must not exist")
    parser.add_argument(
        "repo_id", metavar="USER/NAME", help="the repository; a new one is created as private"
    )
    parser.add_argument("--format", default="diffusers", help="a format of `ldm export` (diffusers)")
    parser.add_argument("--dtype", default="float16", help="dtype of the stored weights (float16)")
    parser.add_argument("--licence", help="licence of the weights, such as mit, for the model card")
    parser.add_argument("--public", action="store_true", help="publish it")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request")
    return parser.parse_args()


def main() -> int:
    args = parse()
    options = ExportOptions(format=args.format, dtype=args.dtype, licence=args.licence, repo_id=args.repo_id)
    try:
        made = export(load_source(args.run), args.dest, options, say=print)
        print(*made.verdicts, sep="\n")
        report = push_folder(args.dest, args.repo_id, public=args.public, create_pr=args.create_pr, say=print)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{report.url}: {len(report.files)} files, arrived intact")
    return 0


if __name__ == "__main__":
    sys.exit(main())
