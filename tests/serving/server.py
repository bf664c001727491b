"""`hf-infeco serve` as a user starts it, on a tiny random model whose words are its tokens."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..contract.families import VOCAB
from ..flying import processes
from ..flying.models import build

TIMEOUT = 12 * processes.TIMEOUT  # seconds of whatever must happen; a crowded machine is slow to import
KEY = "a key of the tests"


def tokenizer() -> PreTrainedTokenizerFast:
    """Token `n` is the word "wn"; a chat's text is that of its messages."""
    bare = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCAB)}, unk_token="w0"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="w0")
    made.chat_template = "{% for each in messages %}{{ each.content }} {% endfor %}"
    return made


def save_model(folder: Path, name: str = "llama") -> None:
    build(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@dataclass
class Server:
    """One that runs, its address, and clients that show the key."""

    process: subprocess.Popen
    address: str

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.address}/v1", api_key=KEY, max_retries=0, timeout=TIMEOUT)

    def ask(self, path: str, body: Any = None, key: str = KEY, **headers: str) -> tuple[int, str]:
        """Status and text of an answer; `body` is sent as JSON, or as it is where it is bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"} | headers
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def status(self) -> dict[str, Any]:
        return json.loads(self.ask("/status")[1])

    def followers(self) -> list[int]:
        """Process ids of those that the first process has started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def stop(self) -> int:
        """Tells the first process, as a service manager does; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT)


@contextlib.contextmanager
def served(folder: Path, *options: Any) -> Iterator[Server]:
    """A server until the end of the block, whatever happens there."""
    code = "from hf_infeco.cli import app; app()"
    command = [sys.executable, "-c", code, "serve", str(folder), "--port", "0", *map(str, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_INFECO_API_KEY": KEY}
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        try:
            ready, _, _ = select.select([process.stdout], [], [], TIMEOUT)
            line = process.stdout.readline() if ready else ""
            assert line.startswith("serving "), line + Path(log.name).read_text()
            server = Server(process, line.split()[-1])
            assert until(lambda: server.process.poll() is not None or server.ask("/health")[0] == 200)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            process.stdout.close()


def until(is_so: Callable[[], bool]) -> bool:
    """Whether it became so in time."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError):
            if is_so():
                return True
        time.sleep(0.05)
    return False
