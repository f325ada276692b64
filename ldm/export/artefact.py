"""An export: written to a temporary folder, read back by other libraries, compared, and only then moved into place."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.export.border import clean_folder, public_record
from ldm.export.card.model_card import check_evaluations, write_card
from ldm.export.card.samples import draw_samples
from ldm.export.export_options import ExportOptions
from ldm.export.export_source import ExportSource
from ldm.export.formats.exporter import exporter_of
from ldm.export.formats.formats import FORMATS
from ldm.export.model_files import CARD, REPORT
from ldm.export.space import write_space
from ldm.export.verify.compare import NotVerified, Verdict
from ldm.io.files import MANIFEST, file_entry, write_json
from ldm.io.folders import new_folder, replace_folder, write_index
from ldm.io.ownership import check_replaceable, is_ours, numbered
from ldm.io.redaction import private_names, public_file_name
from ldm.models.mean_only import learns_variance
from ldm.version import __version__

Say = Callable[[str], None]
"""Reports progress, one line a call."""


@dataclass(frozen=True)
class ExportReport:
    """What `export` did.

    Attributes:
        dest: the folder.
        verdicts: one or more, of the libraries that read it.
    """

    dest: Path
    verdicts: tuple[Verdict, ...]


def export(
    source: ExportSource, dest: Path, options: ExportOptions, *, say: Say = lambda _: None
) -> ExportReport:
    """Write a model for other programs into a new folder: complete and verified, or not at all.

    Raises:
        UserError: the folder exists, or with `overwrite` holds what this program did not write; or the format does not
            fit the model; or the reader cannot read the export or draws another image, in which case the export is kept
            in `DEST.failed`.
    """
    if options.overwrite:
        check_replaceable(dest)
    check_evaluations(source, options.evaluations)  # before minutes of work
    source = for_readers(source, options, say)
    with new_folder(dest, replace=options.overwrite) as temporary:
        say(f"writing {options.format}")
        name = public_file_name(dest.name)
        read_back = exporter_of(options.format)(source, temporary, options, name)
        _clean(temporary, options, say)
        say("reading it back in a fresh process")
        try:
            verdicts = read_back()
        except NotVerified as error:
            raise _set_aside(temporary, dest, "could not be verified", error) from error
        except UserError as error:
            raise _set_aside(temporary, dest, "failed verification", error) from error
        (temporary / MANIFEST).unlink(missing_ok=True)  # of the saved model; export.json lists the files
        report = _report(source, options, temporary, verdicts)
        write_json(temporary / REPORT, report)
        if bad := [verdict for verdict in verdicts if not verdict.passed]:
            raise _set_aside(temporary, dest, "failed verification", UserError(str(bad[0])))
        say("writing the model card")
        write_card(
            temporary,
            source,
            title=options.title or source.model_id,
            licence=options.licence,
            repo_id=options.repo_id,
            format=options.format,
            samples=draw_samples(source, options.num_samples),
            name=name,
            evaluations=options.evaluations,
        )
        _clean(temporary, options, say)
        write_json(temporary / REPORT, {**report, "card_files": _card_files(temporary)})
        if options.space:
            write_space(temporary, name, title=options.title or source.model_id, licence=options.licence)
    return ExportReport(dest, verdicts)


def for_readers(source: ExportSource, options: ExportOptions, say: Say) -> ExportSource:
    """The model as the readers of a format can take it: without a learned variance where they know none."""
    leaves_out = options.strip_variance or FORMATS[options.format].mean_only
    if not leaves_out or not learns_variance(source.parts):
        return source
    say("the learned variance is left out: samplers take the mean alone")
    return source.without_variance()


def _clean(folder: Path, options: ExportOptions, say: Say) -> None:
    if changed := clean_folder(folder, repo_id=options.repo_id):
        say(f"private text was removed from {', '.join(changed)}")


def _set_aside(temporary: Path, dest: Path, outcome: str, reason: UserError) -> UserError:
    """Keep a failed export beside its destination. An earlier failure is replaced, and nothing else."""
    failed = next(path for path in numbered(dest.with_name(dest.name + ".failed")) if is_ours(path))
    write_index(temporary)
    kept = f"it is kept in {failed}"
    try:
        replace_folder(temporary, failed)
    except OSError as error:  # a destination that is a mount point, in a folder that is not writable
        kept = f"it is not kept, because {failed} cannot be written ({error.strerror})"
    return UserError(f"the export {outcome}: {reason.what}", "; ".join(filter(None, (reason.hint, kept))))


def _report(
    source: ExportSource, options: ExportOptions, folder: Path, verdicts: tuple[Verdict, ...]
) -> dict[str, Any]:
    made = {"program": "open-ldm", "version": __version__}
    origin: dict[str, Any] = {"model_id": source.model_id, "weights_hash": source.weights_hash}
    if source.identity:
        origin["model_parts"] = dict(source.identity.parts)
    if source.adapter:
        origin["base_weights_hash"] = source.adapter.base_weights_hash
        origin["base_parts"] = dict(source.adapter.base_parts)
    kept = ("format", "dtype", "variant", "strip_variance", "fuse")
    return {
        "format": options.format,
        "made_by": made,
        "source": public_record(origin, private_names(options.repo_id)),
        "options": {key: value for key, value in asdict(options).items() if key in kept},
        "verified": [verdict.to_dict() for verdict in verdicts],
        "files": files_with_hashes(folder),
    }


def files_with_hashes(folder: Path) -> Mapping[str, dict[str, Any]]:
    """SHA-256 and size in bytes of every file, by path; the model card is left out, because it may be edited."""
    return {name: file_entry(path) for name, path in _files(folder).items() if not _is_card(name)}


def _card_files(folder: Path) -> Mapping[str, dict[str, Any]]:
    """The same for the card and its images: an edited card is never replaced."""
    return {name: file_entry(path) for name, path in _files(folder).items() if _is_card(name)}


def _files(folder: Path) -> dict[str, Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {name: path for name, path in names.items() if name != REPORT}


def _is_card(name: str) -> bool:
    return name == CARD or name.startswith("samples/")
