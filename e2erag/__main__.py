"""The command line; a flag can also stand in a YAML file (--config).

e2erag demo | extract | index | add | delete | fit | ask | evaluate
"""

import logging
import re
import sys
from argparse import Action
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from json import dumps, loads
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
from jsonargparse import ArgumentParser, auto_cli

from e2erag.artefact import check_folder, check_place, check_target, write_file
from e2erag.config import RAGConfig
from e2erag.demo import demo
from e2erag.evaluation import evaluate as evaluate_system
from e2erag.extract import Document, Report, read_report, stream
from e2erag.extract.report import printable
from e2erag.generator import GeneratorConfig
from e2erag.questions import read_questions
from e2erag.rag import GENERATOR, RAG, RETRIEVER
from e2erag.report import dropped, page_text, saved, write_report
from e2erag.retriever import IndexConfig, RetrieverConfig
from e2erag.retriever.ranks import join, rank
from e2erag.train import FitConfig
from e2erag.train.parallel import check_started, over_ranks
from e2erag.view import Gate

EXIT_CODES = (
    "exit code of extract, index and add: 0 where every file was read, 3 where some were, 1 where none was; "
    "1 of any command that failed, and 2 of one that was called in a way it can't be"
)


class Parser(ArgumentParser):
    """Takes `files` as a shell expands a pattern, one after the other; as one text or a list they come too.

    What it doesn't know it answers with the nearest that it knows, and settings that can't be as any wrong call."""

    def __init__(self, *given: Any, **named: Any) -> None:
        ours: dict[str, Any] = {"prog": "e2erag", "epilog": EXIT_CODES, "allow_abbrev": False}
        super().__init__(*given, **ours | named)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """In a few lines, where the default lists every flag there is."""
        (commands,) = [a.choices for a in self._actions if isinstance(a.choices, dict)] or [{}]
        named = re.search(rf"required: ({'|'.join(commands)})\.", message) if commands else None
        parser = commands[named[1]] if named else getattr(ex, "subcommand_parser", None) or self
        known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        wrong = re.search(r"(?:unrecognized arguments: --|option ')([\w.]+)", message)
        near = get_close_matches(f"--{wrong[1]}", known, 1, 0.5) if wrong else []
        if command := re.search(r"argument subcommand: invalid choice: '(\w+)'", message):
            near = get_close_matches(command[1], commands, 1)
        prog = parser.prog.replace(" [options]", "")
        takes = [f"{a.dest} ..." if _is_files(a) else a.dest for a in parser._actions if not a.option_strings]
        takes = [" | ".join(commands)] if takes == ["subcommand"] else takes
        print(f"usage: {' '.join([prog, '[options]', *takes])}", file=sys.stderr)
        print(f"{prog}: {message}{f'; did you mean {near[0]}?' if near else ''}", file=sys.stderr)
        print(f"{prog} --help tells all options", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self, *given: Any) -> str:
        for action in filter(_is_files, self._actions):
            action.metavar = "files ..."
        return str(super().format_help(*given))

    def instantiate(self, *given: Any, **named: Any) -> Any:
        with _asked():
            return super().instantiate(*given, **named)

    def _get_nargs_pattern(self, action: Action) -> str:
        if _is_files(action):
            action = copy(action)  # itself it stays a single value, which in a YAML file may be one text
            action.nargs = "+"
        return str(super()._get_nargs_pattern(action))

    def _get_values(self, action: Action, arg_strings: list[str]) -> Any:
        given = [text for text in arg_strings if text != "--"]
        several = _is_files(action) and len(given) > 1
        return given if several else super()._get_values(action, arg_strings)


def _is_files(action: Action) -> bool:
    return action.dest == "files" and not action.option_strings


class UsageError(ValueError):
    """A command that was called in a way it can't be."""


@contextmanager
def _asked() -> Iterator[None]:
    """What is refused in here was asked for wrongly, and ends with 2; nothing has been read yet."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(error) from None


def _check_system(folder: str) -> None:
    check_folder(Path(folder), hashes=False)
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} holds no system: give a folder that `e2erag index` or `e2erag fit` wrote")


def _reading(**given: Any) -> dict[str, Any]:
    """Options of reading, of which those that can't be are refused before the first file."""
    stream([], **given).close()
    if given.get("cache") is not None:
        check_place(given["cache"])
    return given


def fit(
    files: str | list[str],
    questions: str,
    out: str,
    system: str | None = None,
    retriever: str = RETRIEVER,
    generator: str = GENERATOR,
    retrieval: RetrieverConfig = RetrieverConfig(),  # noqa: B008 - frozen, as those below
    generation: GeneratorConfig = GeneratorConfig(),  # noqa: B008
    answering: RAGConfig = RAGConfig(),  # noqa: B008
    index: IndexConfig = IndexConfig(),  # noqa: B008
    settings: FitConfig = FitConfig(),  # noqa: B008
    seconds: float | None = None,
    memory: int | None = None,
) -> None:
    """Index files, train all three stages on questions, and save the system.

    On several devices: `torchrun --nproc-per-node 4 -m e2erag fit …`; batch_size is that of each process.

    Args:
        files: one or several paths, globs or folders of PDFs.
        questions: a jsonl file with `question` and `answers`.
        out: folder of the trained system.
        system: a saved system to go on from; else the two models below.
        retriever: hub id or local folder of a sentence-transformers model.
        generator: hub id or local folder of a language model, causal or encoder–decoder.
        retrieval: how a new system scores passages.
        generation: how a new system's reader reads.
        answering: how a new system searches and answers.
        index: where the index of a system to go on from lies, and how it is searched; a new one's is answering.index.
        settings: of the run.
        seconds: that reading a file may take, and again for every MB of it; 60 if not given, 300 where scans are
            recognised.
        memory: bytes that a process which reads may have; 2147483648 if not given.
    """
    if system is not None and (retrieval, generation, answering) != (RetrieverConfig(), GeneratorConfig(), RAGConfig()):
        raise ValueError(
            f"{system} keeps what it was made with: leave out --retrieval and --answering and --generation, or --system"
        )
    if system is None and index != IndexConfig():
        raise ValueError("--index is of a --system to go on from, and none came: a new one's is --answering.index")
    with _asked():
        check_target(out)
        reading = _reading(seconds=seconds, memory=memory)
        if system is not None:
            _check_system(system)
        if settings.folder is not None:
            check_place(settings.folder)
        asked = read_questions(questions)
    join()
    rag = RAG.from_pretrained(
        system,
        retriever=retriever,
        generator=generator,
        retrieval=retrieval,
        generation=generation,
        config=answering,
        index=None if system is None else index,
    )
    check_started(rag)
    with over_ranks(rag):
        rag.index(files, **reading)
    run = rag.fit(asked, settings)
    if rank() == 0:
        rag.save_pretrained(out)
        if run.calibration is not None:
            print(run.calibration)
        print(f"saved to {out}")


def index(
    files: str | list[str],
    out: str,
    retriever: str = RETRIEVER,
    generator: str = GENERATOR,
    retrieval: RetrieverConfig = RetrieverConfig(),  # noqa: B008 - frozen, as those below
    generation: GeneratorConfig = GeneratorConfig(),  # noqa: B008
    answering: RAGConfig = RAGConfig(),  # noqa: B008
    cache: str | None = None,
    seconds: float | None = None,
    memory: int | None = None,
) -> None:
    """Index files with pretrained models, untrained, and save the system.

    With --answering.index.folder rows are written there while they are made; killed, the same call goes on. The exit
    code is as for `extract`; where no file was read, nothing is saved.

    Args:
        files: one or several paths, globs or folders.
        out: folder of the system.
        retriever: hub id or local folder of a sentence-transformers model.
        generator: hub id or local folder of a language model, causal or encoder–decoder.
        retrieval: how it scores passages.
        generation: how its reader reads.
        answering: how it searches and answers.
        cache: a folder that keeps what was read, so that a file is read once.
        seconds: that reading a file may take, and again for every MB of it; 60 if not given, 300 where scans are
            recognised.
        memory: bytes that a process which reads may have; 2147483648 if not given.
    """
    with _asked():
        check_target(out)
        reading = _reading(cache=cache, seconds=seconds, memory=memory)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("e2erag").setLevel(logging.INFO)  # what a build will take
    rag = RAG.from_pretrained(
        retriever=retriever, generator=generator, retrieval=retrieval, generation=generation, config=answering
    )
    failed = rag.index(files, **reading)
    rag.save_pretrained(out)
    documents = len(rag.corpus.documents) if rag.corpus is not None else 0
    print(f"{documents} documents indexed, {len(failed)} files couldn't be read; saved to {out}")
    _end(Report(documents, failed))


def add(
    system: str,
    files: str | list[str],
    cache: str | None = None,
    seconds: float | None = None,
    memory: int | None = None,
) -> None:
    """Index files beside those of a saved system, in place of what they were before, and save it.

    The exit code is as for `extract`; a file whose bytes are indexed already counts as read.

    Args:
        system: a saved system.
        files: one or several paths, globs or folders; those whose bytes are indexed already are passed by.
        cache: a folder that keeps what was read, so that a file is read once.
        seconds: that reading a file may take, and again for every MB of it; 60 if not given, 300 where scans are
            recognised.
        memory: bytes that a process which reads may have; 2147483648 if not given.
    """
    with _asked():
        reading = _reading(cache=cache, seconds=seconds, memory=memory)
    with _changed(system) as rag:
        done = rag.add(files, **reading)
    print(
        f"{done.added} documents added, {done.replaced} of them in place of another; {done.unchanged} files unchanged, "
        f"{len(done.failed)} couldn't be read"
    )
    _end(Report(done.added + done.replaced + done.unchanged, done.failed))


def delete(system: str, files: str | list[str]) -> None:
    """Forget documents of a saved system, and save it.

    Args:
        system: a saved system.
        files: one or several of their names, as they were indexed.
    """
    with _changed(system) as rag:
        gone = rag.delete(files)
    print(f"{gone} documents deleted")


@contextmanager
def _changed(system: str) -> Iterator[RAG]:
    """A saved system, saved again in its place when all is done."""
    with _asked():
        _check_system(system)
    kind = RAGConfig.from_json(loads((Path(system) / "config.json").read_text(encoding="utf-8"))["rag"]).index
    if kind.kind == "exact":
        rag = RAG.from_pretrained(system)
        yield rag
        rag.save_pretrained(system)
        return
    with TemporaryDirectory(dir=Path(system).resolve().parent) as folder:  # beside it: on a disk that has the room
        rag = RAG.from_pretrained(system, index=replace(kind, folder=folder))
        yield rag
        rag.save_pretrained(system)


def extract(
    files: str | list[str],
    out: str | None = None,
    system: str | None = None,
    cache: str | None = None,
    workers: int | None = None,
    engine: str | None = None,
    pages: int = 3,
    gate: Gate = "read",
    seconds: float | None = None,
    memory: int | None = None,
) -> None:
    """Read files and report what could not be read; with a system, show what its extractor keeps of them.

    The exit code is 0 where every file was read, 3 where some were, 1 where none was.

    Args:
        files: one or several paths, globs or folders.
        out: a folder for what is read as Markdown, a file per document; with a system for its report, index.html.
        system: a saved system, whose extractor judges every line.
        cache: a folder that keeps what was read, so that a file is read once.
        workers: processes to read in; one per core if not given, and with 0 none, and no limits of time and memory.
        engine: pypdf or pypdfium2, to read PDFs with; the faster one where it is installed.
        pages: of each document, how many are drawn and shown (with a system).
        gate: that tints the report's lines: read (what the generator sees), retrieve (what is found by) or carry (what
            travels with other passages, which is shown in the terminal too).
        seconds: that reading a file may take, and again for every MB of it; 60 if not given, 300 where scans are
            recognised.
        memory: bytes that a process which reads may have; 2147483648 if not given.
    """
    with _asked():
        if pages < 0:
            raise ValueError(f"pages is how many of each document are shown, none or more, got {pages}: 0 shows none")
        reading = _reading(cache=cache, workers=workers, engine=engine, seconds=seconds, memory=memory)
        if out is not None:
            check_place(out)
        if system is not None:
            _check_system(system)
            if out is not None:
                import_module("e2erag.draw")  # needs Pillow
    rag = None if system is None else RAG.from_pretrained(system, index=IndexConfig())
    documents: list[Document] = []

    def take(document: Document) -> None:
        if rag is not None:
            documents.append(document)
        elif out is not None:
            # Of 255 bytes that a name may have, with what is added here and while it is written.
            stem = printable(document.name).encode()[:180].decode(errors="ignore")
            # The digest keeps two files of one name apart.
            write_file(Path(out) / f"{stem}.{document.sha256[:8]}.md", document.to_markdown())

    report = read_report(files, take, **reading)
    print(report)
    if rag is not None and documents:
        rag.index(documents)
        for document in rag.corpus.documents if rag.corpus else ():  # a second file of the same content isn't there
            for page in [page.number for page in document.pages if page.units][:pages]:
                print("\n" + page_text(rag, document.file, page, colour=sys.stdout.isatty(), gate=gate))
        print(f"\n{saved(rag)}\n" + ("\n".join(map(str, dropped(rag))) or "No line is dropped."))
        if out is not None:
            print(f"\npages with gates, cuts and candidates: {write_report(rag, out, pages, gate)}")
    _end(report)


def _end(report: Report) -> None:
    """With the exit code that says whether all files were read, some or none."""
    if report.exit_code:
        raise SystemExit(report.exit_code)


def ask(system: str, question: str) -> None:
    """Answer a question with citations.

    Args:
        system: a saved system.
        question: what to ask.
    """
    with _asked():
        _check_system(system)
    answer = RAG.from_pretrained(system).ask(question)
    print(answer.text)
    for citation in answer.citations:
        print(f"  {citation}")


def evaluate(
    system: str,
    questions: str,
    files: str | list[str] | None = None,
    json: str | None = None,
    both: bool = True,
    seconds: float | None = None,
    memory: int | None = None,
) -> None:
    """Recall of the gold page, exact match and F1 over a question file, with soft and hard gates side by side.

    Args:
        system: a saved system.
        questions: a jsonl file with `question`, `answers`, and `file` and `page` where known.
        files: what to index first; else what the system has indexed.
        json: a file for the figures.
        both: whether to index and ask in the other gate mode too, where that makes a difference.
        seconds: that reading a file may take, and again for every MB of it; 60 if not given, 300 where scans are
            recognised.
        memory: bytes that a process which reads may have; 2147483648 if not given.
    """
    with _asked():
        _check_system(system)
        reading = _reading(seconds=seconds, memory=memory)
        if json is not None:
            check_place(Path(json).parent)
            if Path(json).is_dir():
                raise ValueError(f"--json {json} is a folder, and the figures are a file: name one in it")
        asked = read_questions(questions)
    rag = RAG.from_pretrained(system, index=IndexConfig() if files else None)
    if files:
        rag.index(files, **reading)
    result = evaluate_system(rag, asked, both=both)
    print(result)
    if json is not None:
        write_file(Path(json), dumps(result.to_json(), indent=2) + "\n")


NO_MEMORY = (
    "e2erag: there is not enough memory: set --settings.memory_budget (of fit), or lower --settings.batch_size or "
    "--settings.k; for reading lower --workers (of extract); or give the process more"
)


def main() -> None:
    """Run a command; what the user can mend is told in one message, without a traceback."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    try:
        commands: dict[str, Any] = {
            each.__name__: each for each in (demo, extract, index, add, delete, fit, ask, evaluate)
        }
        auto_cli(commands, as_positional=True, parser_class=Parser)
    except UsageError as error:
        print(f"e2erag: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (MemoryError, torch.OutOfMemoryError):
        raise SystemExit(NO_MEMORY) from None
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        if "DefaultCPUAllocator" in str(error):  # torch has no error of its own for it
            raise SystemExit(NO_MEMORY) from None
        text = error.args[0] if isinstance(error, KeyError) else error  # whose text would be in quotes
        raise SystemExit(f"e2erag: {text}") from None
    except KeyboardInterrupt:
        print("e2erag: interrupted", file=sys.stderr)
        raise SystemExit(130) from None  # as a shell says it


if __name__ == "__main__":
    main()
