"""The memory of another process, as Linux counts it."""

from pathlib import Path


def own_and_mapped(pid: int) -> tuple[int, int]:
    """Bytes of a process that are its own, and bytes of mapped files; zero once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    found = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    own, files = (int(found.get(key, "0").split()[0]) * 1024 for key in ("RssAnon", "RssFile"))
    return own, files
