"""The log in files as well: `logs/jackfield.log` beside the configuration, rotated within `logs-max-total-size-mb`."""

import logging
import os
from logging.handlers import RotatingFileHandler
from typing import Final

import structlog

from host.config.model import Config, config_path
from host.observe.logs import current_sink

log = structlog.get_logger("host.observe.logfile")

DIRECTORY: Final = "logs"
OLDER_FILES: Final = 4
"""Kept beside the newest one, when there is a limit."""
MEGABYTE: Final = 1024 * 1024


class LogFiles:
    """Follows the configuration. Writing blocks, as writing to standard error does; lines come in batches."""

    def __init__(self, *, worker: int = 1) -> None:
        self._name: Final = "jackfield.log" if worker == 1 else f"jackfield-{worker}.log"
        self._handler: RotatingFileHandler | None = None
        self._place: tuple[str, int] | None = None

    @property
    def paths(self) -> list[str]:
        """The files there are, the newest first; empty while none are written."""
        if self._place is None:
            return []
        file = self._place[0]
        names = [file, *(f"{file}.{number}" for number in range(1, OLDER_FILES + 1))]
        return [name for name in names if os.path.exists(name)]

    def follow(self, config: Config) -> None:
        """Begin, change or end writing. A directory that cannot be written is a line in the log and nothing more."""
        wanted = (config_path(config, os.path.join(DIRECTORY, self._name)), max(0, config.logs_max_total_size_mb))
        place = wanted if config.logging_to_file else None
        if place == self._place:
            return
        self.close()
        if place is None:
            return
        file, limit_mb = place
        try:
            os.makedirs(os.path.dirname(file), mode=0o700, exist_ok=True)
            self._handler = RotatingFileHandler(
                file,
                maxBytes=limit_mb * MEGABYTE // (OLDER_FILES + 1),
                backupCount=OLDER_FILES if limit_mb else 0,
                encoding="utf-8",
            )
            os.chmod(file, 0o600)
        except OSError as error:
            log.warning("logs.not_written", path=file, reason=error.strerror)
            return
        self._place = place
        if (sink := current_sink()) is not None:
            sink.copy_to = self._write

    def clear(self) -> int:
        """Empty the newest file and remove the others; how many were removed."""
        removed = 0
        for path in self.paths[1:]:
            os.unlink(path)
            removed += 1
        if self._place is not None:
            with open(self._place[0], "w", encoding="utf-8"):
                pass
        return removed

    def close(self) -> None:
        """Stop writing."""
        if (sink := current_sink()) is not None and sink.copy_to == self._write:
            sink.flush()
            sink.copy_to = None
        if self._handler is not None:
            self._handler.close()
        self._handler = self._place = None

    def _write(self, lines: str) -> None:
        if self._handler is not None:
            self._handler.handle(logging.makeLogRecord({"msg": lines.rstrip("\n")}))
