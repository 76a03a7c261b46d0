"""The steps of `tritgguf ollama`: make a file that Ollama loads, write its Modelfile, create the model, ask it."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from gguf import Keys

from tritgguf.converter.core.progress import Progress
from tritgguf.converter.core.whole_files import require_writable, write_whole
from tritgguf.converter.errors import OllamaError, OutputError, UnsupportedError
from tritgguf.converter.gguf_io.reader import GgufFile, read_gguf
from tritgguf.converter.ollama.modelfile import (
    Modelfile,
    context_parameter,
    license_text,
    ollama_parameters,
)
from tritgguf.converter.ollama.repack import refused, repack, repack_plan
from tritgguf.converter.ollama.versions import CREATE_API, Verdict, parsed, verdict_for, verdicts, verdicts_on
from tritgguf.converter.planning.file_plan import FilePlan
from tritgguf.runtime.engine.token_ids_process import token_ids_process
from tritgguf.runtime.ollama.address import HOST_VARIABLE
from tritgguf.runtime.ollama.api import Ollama, digest_of
from tritgguf.runtime.ollama.connection import NotRunningError
from tritgguf.runtime.ollama.disk_space import LLAMA_SERVER
from tritgguf.runtime.ollama.template import ChatTemplateFacts, chat_template_facts

QUESTION = "What is the capital of France?"
ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Package:
    """What Ollama gets: `files`, which are `source` itself or one yet to be repacked by `plan`, and a Modelfile."""

    source: GgufFile
    files: tuple[Path, ...]
    plan: FilePlan | None
    why_repacked: str
    chat: ChatTemplateFacts
    modelfile: Modelfile

    @property
    def modelfile_path(self) -> Path:
        """Where the Modelfile goes: beside the source, with its name."""
        return self.source.path.with_suffix(".Modelfile")

    @property
    def file(self) -> Path:
        """The first or only file."""
        return self.files[0]

    @property
    def file_bytes(self) -> int:
        """The bytes of all files."""
        return self.plan.file_bytes if self.plan else self.source.file_bytes

    @property
    def types(self) -> dict[str, str]:
        """The names of the tensors that Ollama gets, with their types."""
        if self.plan is None:
            return {name: tensor.dtype for name, tensor in self.source.tensors.items()}
        return {tensor.spec.name: tensor.codec.ggml_type.name for tensor in self.plan.tensors}

    @property
    def replaces_own_copy(self) -> bool:
        """Whether `file` is there and has the planned header, so that it is an earlier, maybe damaged, copy of this."""
        if self.plan is None or not self.file.is_file():
            return False
        with self.file.open("rb") as file:
            return file.read(len(self.plan.parts[0].header)) == self.plan.parts[0].header

    def commands(self, name: str) -> tuple[str, str]:
        """Return the two commands that create and run the model by hand."""
        words = ("ollama", "create", name, "-f", str(self.modelfile_path)), ("ollama", "run", name)
        return shlex.join(words[0]), shlex.join(words[1])


def pack(path: Path, *, system: str = "", context: int | None = None, progress: Progress | None = None) -> Package:
    """Plan what Ollama gets of a GGUF file, and write nothing; raise TritggufError if Ollama can't have it."""
    file = _stock_file(path)
    verdict = verdicts(file)[-1]
    types = refused(file)
    if verdict.loads is False and not repack_helps(file):
        raise UnsupportedError(f"{path.name} can't become an Ollama model: Ollama {'; '.join(verdict.reasons)}")
    chat = chat_template_facts(file)
    reasons = [f"Ollama refuses {', '.join(types)} tensors"] if types else []
    if chat.jinja not in (None, file.value(Keys.Tokenizer.CHAT_TEMPLATE)):
        reasons.append(chat.why_jinja)
    plan = repack_plan(path, jinja=chat.jinja, progress=progress) if reasons else None
    files = (path.with_name(f"{path.stem}-ollama.gguf"),) if reasons else file.paths
    parameters = {"stop": chat.stops} if chat.stops else {}
    modelfile = Modelfile(
        source=files[0].name,
        more_sources=tuple(more.name for more in files[1:]),
        template=chat.template,
        parameters={**parameters, "num_ctx": context_parameter(file, context), **ollama_parameters(file)},
        system=system,
        license=license_text(file),
    )
    modelfile.text()  # raises, before anything is written, if a text can't be quoted
    return Package(file, files, plan, " and ".join(reasons), chat, modelfile)


def _stock_file(path: Path) -> GgufFile:
    """Read a file; raise UnsupportedError if only other programs than Ollama read its tensors."""
    file = read_gguf(path)
    file.stock_tensors()
    return file


def repack_helps(file: GgufFile) -> bool:
    """Whether the newest Ollama refuses types of the file, and nothing else, as far as is known."""
    return bool(refused(file)) and verdicts(replace(file, tensors={}))[-1].loads is not False


def find_server(client: Ollama) -> str | None:
    """Return the server's version; None if there is no server, no `ollama` on the PATH and no $OLLAMA_HOST.

    Raises NotRunningError if there is no server although one of the other two is set.
    """
    try:
        return client.version()
    except NotRunningError:
        if shutil.which("ollama") or os.environ.get(HOST_VARIABLE):
            raise
        return None


def require_creatable(package: Package, client: Ollama, version: str, name: str, *, force: bool) -> None:
    """Raise OllamaError if this server can't create the model; nothing is written or sent before."""
    if parsed(version) < CREATE_API:
        wanted = ".".join(map(str, CREATE_API))
        raise OllamaError(
            f"Ollama {version} at {client.address} is too old to receive a file; update it to {wanted} or newer"
        )
    verdict = verdict_for(verdicts_on(package.source.architecture or "", package.types), version)
    if verdict.loads is False:
        raise OllamaError(
            f"Ollama {version} won't load {package.file.name}: it {'; '.join(verdict.reasons)}; update Ollama"
        )
    if len(package.files) > 1 and parsed(version) < LLAMA_SERVER:
        raise OllamaError(
            f"Ollama {version} at {client.address} takes no split files; update it to "
            f"{'.'.join(map(str, LLAMA_SERVER))} or newer, or make one file of it: tritgguf convert "
            f"{package.file.name} ONE.gguf --for ollama"
        )
    if not force and client.has_model(name):
        raise OllamaError(f"Ollama has a model {name} already; add --force to replace it, or choose another name")


def write(
    package: Package,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the Modelfile and, if planned, the repacked file.

    The latter is written even if it is there: nothing shows that an earlier one was made of today's source and has no
    damage. Raises OutputError if either would replace another file, unless `force`.
    """
    text = package.modelfile.text().encode()
    path = package.modelfile_path
    same = path.is_file() and path.read_bytes() == text
    if not same:
        _require_writable(path, force)
    if package.plan is not None:
        repack(
            package.source.path,
            package.file,
            jinja=package.chat.jinja,
            force=force or package.replaces_own_copy,
            progress=progress,
            plan=package.plan,
            token_ids=token_ids_process,
        )
    if not same:
        write_whole(path, text, force=force)


def _require_writable(path: Path, force: bool) -> None:
    try:
        require_writable(path, [path], force)
    except OutputError as error:
        raise OutputError(f"{error} (the Modelfile for this file)") from error


def create(package: Package, client: Ollama, name: str, progress: Progress | None = None) -> None:
    """Send the files, except those that the server has already, and create the model."""
    digests = [digest_of(file, progress) for file in package.files]
    for file, digest in zip(package.files, digests, strict=True):
        if not client.has_blob(digest):
            client.send_blob(file, digest, progress)
    client.create(package.modelfile.request(name, *digests), progress)


def ask(client: Ollama, name: str) -> str:
    """Return the model's answer to QUESTION, on one line."""
    try:
        answer = client.chat(name, [{"role": "user", "content": QUESTION}], max_tokens=ANSWER_TOKENS)
    except OllamaError as error:
        raise OllamaError(f"Ollama created {name}, but it doesn't answer: {error}") from error
    return " ".join(answer.split())


@dataclass(frozen=True)
class Check:
    """What each range of Ollama versions does with a file as it is, and notes for the user."""

    verdicts: tuple[Verdict, ...]
    family: str
    notes: tuple[str, ...]
    repack_helps: bool

    @property
    def loads_now(self) -> bool:
        """Whether the newest Ollama loads the file, as far as is known."""
        return self.verdicts[-1].loads is not False


def check(path: Path) -> Check:
    """Return what `tritgguf ollama --check` reports about a file."""
    file = _stock_file(path)
    chat = chat_template_facts(file)
    return Check(verdicts(file), chat.family, chat.notes, repack_helps(file))
