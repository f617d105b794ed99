"""The parts of a streamed domain, made ahead of the training by a process of their own: here are both its ends.

The process runs this module. Its standard input brings a line of JSON that says what to make, then in each line the
number of parts that are wanted; it ends when that is closed, and so with the process that started it. Its standard
output gives a line of JSON for each part, or for the error that ended it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from typing import IO

from workers.config.model import ModelConfig
from workers.data.chat_template import freeze_date
from workers.data.parts import PartMaker
from workers.model.tokenizer import load_tokenizer
from workers.settings import Settings, StoragePath
from workers.training.plan import StreamedRows


class PartsJob(Settings):
    """What parts to make."""

    rows: StreamedRows
    model: ModelConfig
    """Whose tokenizer is used."""
    cache_dir: StoragePath


class PartsAhead:
    """The process as its owner sees it; it makes nothing before parts are wanted."""

    def __init__(self, job: PartsJob) -> None:
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-m", "workers.training.parts_ahead"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"},
        )
        self._changed = threading.Condition()
        self._num_made = 0
        self._failure: str | None = None
        self._send(f"{job.model_dump_json()}\n")
        threading.Thread(target=self._listen, name="parts", daemon=True).start()

    def want(self, num_parts: int) -> None:
        """Have at least this many parts made, if there are so many."""
        self._send(f"{num_parts}\n")

    def wait(self, num_parts: int, seconds: float) -> bool:
        """Whether this many parts are there, within that time; ValueError, for the user, if one cannot be made."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_made >= num_parts or self._failure is not None, seconds)
            if self._num_made >= num_parts:
                return True
            if self._failure is not None:
                raise ValueError(self._failure)
            return False

    def close(self) -> None:
        """Let the process end; a part that is being made is dropped."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended, which `wait` reports
            pass

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._changed:
                self._num_made, self._failure = told["num_made"], told["failure"]
                self._changed.notify_all()
        code = self._process.wait()
        with self._changed:
            if self._failure is None and code != 0:
                self._failure = f"the process that prepares it ended with code {code}; see its last lines in the log"
            self._changed.notify_all()


class _Wanted:
    """The number of parts that the owner wants; the process ends with the owner."""

    def __init__(self, lines: IO[bytes], maker: PartMaker) -> None:
        self._lines = lines
        self._maker = maker
        self._changed = threading.Condition()
        self._num = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_for(self, num: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._num >= num)

    def _listen(self) -> None:
        for line in self._lines:
            with self._changed:
                self._num = max(self._num, int(line))
                self._changed.notify_all()
        if building := self._maker.building:
            shutil.rmtree(building, ignore_errors=True)
        os._exit(0)


def main() -> None:
    """Make parts as long as they are wanted, and there are more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C asks the owner to stop, which ends this process
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is for the log

    def tell(num_made: int, failure: str | None = None) -> None:
        answers.write(json.dumps({"num_made": num_made, "failure": failure}) + "\n")
        answers.flush()

    num_made, is_more = 0, True
    try:
        maker = _maker(PartsJob.model_validate_json(sys.stdin.buffer.readline()))
        wanted = _Wanted(sys.stdin.buffer, maker)
        while is_more:
            wanted.wait_for(num_made + 1)
            is_more = maker.make_next()
            num_made += 1
            tell(num_made)
    except Exception as error:  # the owner ends the run with it, whatever it is
        traceback.print_exc()
        tell(num_made, str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")
    os._exit(0)  # while a thread waits for input, Python cannot end in the usual way


def _maker(job: PartsJob) -> PartMaker:
    tokenizer = load_tokenizer(job.model)
    freeze_date(tokenizer, job.cache_dir)
    return PartMaker(job.rows.plan, job.rows.data, tokenizer, job.cache_dir)


if __name__ == "__main__":
    main()
