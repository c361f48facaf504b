"""Other libraries that can be told of `.lmz` or of models: `register` tells them, one call for each.

Nothing of another library is loaded before it is asked for. The modules are named after the libraries;
`archives` and `log_files` are for `shutil`, `tarfile` and `logging` of the standard library.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# The libraries that `register` takes, and the modules that do it.
_MODULES = {
    "datasets": "datasets",
    "fsspec": "fsspec",
    "smart_open": "smart_open",
    "numcodecs": "numcodecs",
    "zarr": "zarr",
    "joblib": "joblib",
    "lm_eval": "lm_eval",
    "shutil": "archives",
}
# What has options gives them itself: each array, each evaluation.
_WITHOUT_OPTIONS = {"numcodecs", "zarr", "lm_eval"}


def register(*names: str, **options: Any) -> None:
    """Tell libraries of this process about `.lmz`. Doing it again changes the options.

    Args:
        names: `datasets` (and `fsspec` with it), `fsspec`, `smart_open`, `numcodecs`, `zarr`, `joblib`,
            `lm_eval`, `shutil`.
        options: of files, as for `lmcodec.open`, where the library does not pass any: `level` and `model` of
            what is written, `max_output` and the other limits of what is read. `numcodecs` and `zarr` keep
            the options of each array with the array, `lm_eval` gives a model its own: they take none.

    Raises:
        ImportError: the library is not installed.
        TypeError, ValueError: there is no such library, or an option is unknown or out of range.
    """
    unknown = [name for name in names if name not in _MODULES]
    if unknown or not names:
        known = ", ".join(_MODULES)
        raise ValueError(
            f"lmcodec can be registered with {known}, not with {', '.join(unknown) or 'nothing'}"
        )
    if options:
        without = sorted(_WITHOUT_OPTIONS.intersection(names))
        if without:
            raise TypeError(f"{without[0]} takes no options: each array or model has its own")
        _check(options)
    for name in names:
        import_module(f"lmcodec.integrations.{_MODULES[name]}").register(**options)


def _check(options: dict[str, Any]) -> None:
    """Refuse at once what would only be refused when the first file is opened."""
    from lmcodec.integrations.files import reading_options, writing_options

    reading_options(options)
    writing_options(options)
