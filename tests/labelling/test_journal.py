"""The journal: durable when a commit returns, few transactions for many commits, and no money forgotten."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stillhouse.dataset.columns import (
    completion_at,
    completion_row,
    completion_schema,
    record_batch,
    rejection_row,
    rejection_schema,
)
from stillhouse.errors import StorageFailed
from stillhouse.labelling import journal as journal_module
from stillhouse.labelling.journal import FILE_NAME, Change, Journal
from stillhouse.labelling.journal_view import JournalView
from stillhouse.records import Completion, Message, Prompt, Rejection


def completion(number: int, text: str = "Blue.") -> Completion:
    return Completion(
        id=f"{number:032x}",
        prompt=Prompt((Message("user", f"Question {number}?"),), reference=f"Answer {number}."),
        sample=0,
        text=text,
        finish_reason="stop",
        prompt_tokens=4,
        completion_tokens=2,
        teacher="somebody",
        created_at="2026-01-01T00:00:00+00:00",
        cost_usd=0.001,
    )


def rejection(number: int, stage: str, answer: Completion | None) -> Rejection:
    return Rejection(f"{number:032x}", completion(number).prompt, 0, stage, "empty", "no text", completion=answer)


def texts(journal: Journal, ids: list[str]) -> dict[str, str]:
    """The text of every completion among `ids`."""
    answers = journal.read(ids)
    return {
        id_: completion_at(answers.tables[kind], place).text
        for id_, (kind, place) in answers.places.items()
        if kind == "completion"
    }


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path, soft=None) as opened:
        yield opened


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds every transaction of the writing thread until it is set."""
    opened = threading.Event()
    write = Journal._write

    def held(self: Journal, changes: Any) -> None:
        assert opened.wait(timeout=10)
        write(self, changes)

    monkeypatch.setattr(Journal, "_write", held)
    yield opened
    opened.set()


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many changes went into each transaction."""
    sizes: list[int] = []
    write = Journal._write

    def counted(self: Journal, changes: Any) -> None:
        sizes.append(len(changes))
        write(self, changes)

    monkeypatch.setattr(Journal, "_write", counted)
    return sizes


def test_an_answer_comes_back_as_it_went_in(journal: Journal) -> None:
    one, lost = completion(1), rejection(2, "teacher", None)
    asyncio.run(journal.commit(Change(outcomes=[one, lost])))
    answers = journal.read([one.id, lost.id, "unknown"])
    assert set(answers.places) == {one.id, lost.id}
    kind, place = answers.places[one.id]
    assert (kind, completion_at(answers.tables["completion"], place)) == ("completion", one)
    kind, place = answers.places[lost.id]
    assert (kind, answers.tables["rejection"]["reason"][place].as_py()) == ("rejection", "empty")


def test_of_two_outcomes_of_one_request_the_later_counts(journal: Journal) -> None:
    """A rejection that is asked again, and answered."""
    asyncio.run(journal.commit(Change(outcomes=[rejection(1, "teacher", None)])))
    asyncio.run(journal.commit(Change(outcomes=[completion(1, "Blue after all.")])))
    assert texts(journal, [completion(1).id]) == {completion(1).id: "Blue after all."}


def test_a_commit_has_returned_when_another_process_can_read_it(journal: Journal, tmp_path: Path) -> None:
    asyncio.run(journal.commit(Change(outcomes=[completion(1)], reserve=(1, 0.25), spent_usd=0.5)))
    probe = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "print(*c.execute('SELECT id FROM answers').fetchone(), *c.execute('SELECT usd FROM reserved').fetchone(),"
        "*c.execute('SELECT value FROM notes WHERE name = ?', ('spent_usd',)).fetchone())"
    )
    command = [sys.executable, "-c", probe, str(tmp_path / FILE_NAME)]
    seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert seen == [completion(1).id, "0.25", "0.5"]


def test_a_commit_waits_for_the_disk(journal: Journal) -> None:
    """SQLite syncs past Python: its own settings are what says that an answer outlasts a power failure."""
    for connection in (journal._writer, journal._reader):
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone()[0] >= 2  # FULL: each commit's log is synced


def test_what_waits_for_the_disk_is_committed_together(
    journal: Journal, transactions: list[int], gate: threading.Event
) -> None:
    async def many() -> None:
        waiting = [asyncio.create_task(journal.commit(Change(outcomes=[completion(n)]))) for n in range(500)]
        await asyncio.sleep(0)  # every task has put its change in
        assert not any(task.done() for task in waiting)
        gate.set()
        await asyncio.gather(*waiting)

    asyncio.run(many())
    assert sum(transactions) == 500
    assert len(transactions) <= 2  # the one under way, and all the rest
    assert len(journal.answered([completion(n).id for n in range(500)])) == 500


def test_commits_from_tasks_that_come_and_go_are_all_there(journal: Journal, transactions: list[int]) -> None:
    async def one(first: int) -> None:
        for n in range(first, first + 20):
            await journal.commit(Change(outcomes=[completion(n)], spent_usd=0.001))

    async def many() -> None:
        await asyncio.gather(*(one(first) for first in range(0, 1000, 20)))

    asyncio.run(many())
    assert sum(transactions) == 1000
    assert len(transactions) < 500
    assert texts(journal, [completion(n).id for n in range(1000)]) == {completion(n).id: "Blue." for n in range(1000)}
    assert journal.spent() == pytest.approx(1.0)


class Broken(Exception):
    """What no disk would say."""


@pytest.mark.parametrize(
    ("error", "told"), [(sqlite3.OperationalError("disk is full"), StorageFailed), (Broken("a defect"), Broken)]
)
def test_an_error_of_the_thread_reaches_all_who_wait_and_the_next_commit_is_tried_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception]
) -> None:
    gate = threading.Event()
    write = Journal._write

    def failing(self: Journal, changes: Any) -> None:
        assert gate.wait(timeout=10)
        raise error

    monkeypatch.setattr(Journal, "_write", failing)

    async def many(journal: Journal) -> None:
        waiting = [asyncio.create_task(journal.commit(Change(outcomes=[completion(n)]))) for n in range(20)]
        forgotten = journal.commit_soon(Change(spent_usd=1.0))
        await asyncio.sleep(0)
        gate.set()
        failed = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in failed] == [told] * 20
        assert "a defect" in str(failed[0]) or "free disk space" in str(failed[0]).lower()
        await asyncio.wait([forgotten])
        monkeypatch.setattr(Journal, "_write", write)
        await journal.commit(Change(outcomes=[completion(99)]))

    with Journal(tmp_path, soft=None) as journal:
        asyncio.run(many(journal))
        assert journal.answered([completion(n).id for n in range(100)]) == {completion(99).id}
        assert journal.spent() == 0


def test_a_transaction_that_fails_leaves_nothing_of_itself(journal: Journal) -> None:
    async def clash() -> None:
        await journal.commit(Change(reserve=(1, 0.5)))
        with pytest.raises(StorageFailed, match="UNIQUE"):
            await journal.commit(Change(outcomes=[completion(1)], reserve=(1, 0.5), spent_usd=0.5))
        await journal.commit(Change(outcomes=[completion(2)], settle=1, spent_usd=0.25))

    asyncio.run(clash())
    assert journal.answered([completion(1).id, completion(2).id]) == {completion(2).id}
    assert journal.spent() == 0.25


def test_a_disk_that_is_full_is_told_and_what_was_durable_is_kept(tmp_path: Path) -> None:
    async def fill(journal: Journal) -> None:
        await journal.commit(Change(outcomes=[completion(1)]))
        (pages,) = journal._writer.execute("PRAGMA page_count").fetchone()
        journal._writer.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(StorageFailed, match="full") as told:
            await journal.commit(Change(outcomes=[completion(2, text="x" * 100_000)]))
        assert str(tmp_path / FILE_NAME) in str(told.value)
        journal._writer.execute("PRAGMA max_page_count=1000000")
        await journal.commit(Change(outcomes=[completion(3)]))

    with Journal(tmp_path, soft=None) as journal:
        asyncio.run(fill(journal))
    with Journal(tmp_path, soft=None) as journal:
        assert set(texts(journal, [completion(n).id for n in range(4)])) == {completion(1).id, completion(3).id}


def test_closing_commits_what_waits_though_nobody_waits_for_it(tmp_path: Path, gate: threading.Event) -> None:
    async def leave(journal: Journal) -> None:
        for n in range(10):
            journal.commit_soon(Change(outcomes=[completion(n)]))

    with Journal(tmp_path, soft=None) as journal:
        asyncio.run(leave(journal))
        gate.set()
    assert not (tmp_path / f"{FILE_NAME}-wal").exists()
    with Journal(tmp_path, soft=None) as journal:
        assert len(journal.answered([completion(n).id for n in range(10)])) == 10


def test_one_who_no_longer_waits_holds_up_nobody_and_his_change_counts(journal: Journal, gate: threading.Event) -> None:
    async def cancel_one() -> None:
        impatient = asyncio.create_task(journal.commit(Change(outcomes=[completion(1)])))
        patient = asyncio.create_task(journal.commit(Change(outcomes=[completion(2)])))
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        gate.set()
        await patient

    asyncio.run(cancel_one())
    assert journal.answered([completion(1).id, completion(2).id]) == {completion(1).id, completion(2).id}


def test_what_one_event_loop_left_holds_up_no_later_one(journal: Journal, gate: threading.Event) -> None:
    async def leave() -> None:
        journal.commit_soon(Change(outcomes=[completion(1)]))
        journal.commit_soon(Change(outcomes=[completion(2)]))

    async def wait() -> None:
        commit = asyncio.create_task(journal.commit(Change(outcomes=[completion(3)])))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.wait_for(commit, timeout=10)

    asyncio.run(leave())
    asyncio.run(wait())
    assert len(journal.answered([completion(n).id for n in (1, 2, 3)])) == 3


def test_reservations_of_a_run_that_was_killed_are_spent(tmp_path: Path) -> None:
    """The journal is opened again as it is on the disk, with two attempts under way."""
    script = (
        "import asyncio, os, sys; from pathlib import Path; from stillhouse.labelling.journal import Change, Journal\n"
        "async def work(journal):\n"
        "    for one in enumerate([0.5, 0.25, 0.125], 1): await journal.commit(Change(reserve=one))\n"
        "    await journal.commit(Change(settle=2, spent_usd=0.0625))\n"
        "asyncio.run(work(Journal(Path(sys.argv[1]), soft=None)))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    with closing(JournalView(tmp_path)) as view:
        assert view.spent() == 0.0625 + 0.5 + 0.125
    for _ in range(2):  # once, however often it is opened
        with Journal(tmp_path, soft=None) as journal:
            assert journal.spent() == 0.0625 + 0.5 + 0.125


def test_notes_are_remembered_and_money_is_one_of_them(tmp_path: Path) -> None:
    with Journal(tmp_path, soft=None) as journal:
        assert journal.get_note("adopted") is None
        assert journal.spent() == 0.0
        journal.set_note("adopted", "plan v001")
        journal.set_note("adopted", "plan v001 v002")
        asyncio.run(journal.commit(Change(spent_usd=0.5)))
        asyncio.run(journal.commit(Change(spent_usd=0.25)))
    with Journal(tmp_path, soft=None) as journal:
        assert journal.get_note("adopted") == "plan v001 v002"
        assert journal.spent() == 0.75


def rows_of(schema: pa.Schema, *rows: dict[str, Any]) -> pa.RecordBatch:
    return record_batch(rows, schema)


def test_answers_of_an_earlier_version_are_taken_over_and_those_here_stand(journal: Journal) -> None:
    asyncio.run(journal.commit(Change(outcomes=[completion(1, "mine")])))
    held = rows_of(
        completion_schema(soft=None), *(completion_row(completion(n, "theirs"), soft=None) for n in range(1, 251))
    )
    assert journal.copy_from(held) == 250
    assert journal.copy_from(held) == 250
    found = texts(journal, [completion(n).id for n in range(300)])
    assert found == {completion(n).id: "mine" if n == 1 else "theirs" for n in range(1, 251)}


def test_what_a_teacher_rejected_stays_so_and_what_a_filter_rejected_is_an_answer(journal: Journal) -> None:
    held = rows_of(
        rejection_schema(soft=None),
        rejection_row(rejection(1, "teacher", completion(1, "")), soft=None),
        rejection_row(rejection(2, "quality", completion(2)), soft=None),
    )
    assert journal.copy_from(held) == 2
    places = journal.read([completion(1).id, completion(2).id]).places
    assert {id_: kind for id_, (kind, _) in places.items()} == {
        completion(1).id: "rejection",
        completion(2).id: "completion",
    }


@pytest.mark.parametrize("others", [0, 1])
def test_what_is_forgotten_is_gone_and_nothing_else(journal: Journal, tmp_path: Path, others: int) -> None:
    ours, theirs = range(50), range(50, 50 + others)

    async def fill() -> None:  # three batches at the most, of which one is partly ours
        await journal.commit(Change(outcomes=[completion(n) for n in ours[:25]], spent_usd=0.25))
        await journal.commit(Change(outcomes=[completion(n) for n in [*ours[25:], *theirs]], spent_usd=0.25))

    asyncio.run(fill())
    journal.set_note("adopted", "plan")
    journal.delete((completion(n).id for n in ours), len(ours))
    assert journal.answered([completion(n).id for n in range(100)]) == {completion(n).id for n in theirs}
    assert set(texts(journal, [completion(n).id for n in theirs])) == {completion(n).id for n in theirs}
    assert (journal.spent(), journal.get_note("adopted")) == (0.5, "plan")
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as other:
        assert other.execute("SELECT count(*) FROM batches").fetchone() == (others,)


def test_what_is_forgotten_takes_no_space(tmp_path: Path) -> None:
    with Journal(tmp_path, soft=None) as journal:
        for start in range(0, 2000, 100):
            answers = [completion(start + n, f"{start} {n} " * 50) for n in range(100)]
            asyncio.run(journal.commit(Change(outcomes=answers)))
    full = (tmp_path / FILE_NAME).stat().st_size
    with Journal(tmp_path, soft=None) as journal:
        journal.delete((completion(n).id for n in range(1999)), 1999)
    assert (tmp_path / FILE_NAME).stat().st_size < full / 4


def test_what_is_forgotten_takes_no_space_while_the_journal_is_open(journal: Journal, tmp_path: Path) -> None:
    empty = (tmp_path / FILE_NAME).stat().st_size
    asyncio.run(journal.commit(Change(outcomes=[completion(n, text="x" * 10_000) for n in range(100)])))
    journal.delete([completion(n).id for n in range(100)], 100)
    sizes = [file.stat().st_size for file in tmp_path.glob(f"{FILE_NAME}*") if not file.name.endswith("-shm")]
    assert sum(sizes) < empty + 50_000


def test_a_later_answer_takes_the_place_of_an_earlier_one(journal: Journal) -> None:
    for text in ("first", "second"):
        asyncio.run(journal.commit(Change(outcomes=[completion(1, text)])))
    assert texts(journal, [completion(1).id]) == {completion(1).id: "second"}


def test_forgetting_does_not_break_into_a_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last settled attempt, which nobody waits for, may be half written when the version is finished."""
    half_written, go_on = threading.Event(), threading.Event()
    spend = Journal._spend

    def held(self: Journal, usd: float) -> None:
        if usd:
            half_written.set()
            assert go_on.wait(timeout=10)
        spend(self, usd)

    monkeypatch.setattr(Journal, "_spend", held)

    async def leave(journal: Journal) -> None:
        journal.commit_soon(Change(outcomes=[completion(2)], spent_usd=0.5))

    with Journal(tmp_path, soft=None) as journal:
        journal.copy_from(rows_of(completion_schema(soft=None), completion_row(completion(1), soft=None)))
        asyncio.run(leave(journal))
        assert half_written.wait(timeout=10)
        forgetting = threading.Thread(target=journal.delete, args=([completion(1).id], 1))
        forgetting.start()
        forgetting.join(timeout=0.1)
        with closing(JournalView(tmp_path)) as view:
            assert (completion(2).id in view.ids(), view.spent()) == (False, 0.0)
        go_on.set()
        forgetting.join(timeout=10)
    with Journal(tmp_path, soft=None) as journal:
        assert journal.spent() == 0.5
        assert journal.answered([completion(1).id, completion(2).id]) == {completion(2).id}


def test_reading_holds_some_batches_and_not_the_journal(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts in another order than before find their answers in many batches; of each only what is wanted is kept."""

    async def fill() -> None:
        for first in range(0, 400, 10):
            await journal.commit(Change(outcomes=[completion(n, f"text {n}") for n in range(first, first + 10)]))

    asyncio.run(fill())
    held: list[int] = []
    select = Journal._select

    def watched(self: Journal, query: str, *rest: Any) -> Any:
        rows = list(select(self, query, *rest))
        if "body" in query:
            held.append(rest[1])
        return rows

    monkeypatch.setattr(Journal, "_select", watched)
    wanted = [completion(n).id for n in range(9, 400, 10)]
    answers = journal.read(wanted)
    assert held == [journal_module._BATCHES_PER_QUERY]
    assert answers.tables["completion"].num_rows == len(wanted)
    assert texts(journal, wanted[::-1]) == {id_: f"text {int(id_, 16)}" for id_ in wanted}


def test_a_journal_whose_rows_have_other_columns_is_refused_and_left_alone(tmp_path: Path) -> None:
    with Journal(tmp_path, soft=None) as journal:
        asyncio.run(journal.commit(Change(outcomes=[completion(1)])))
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as old, old:
        old.execute("UPDATE notes SET value = 'others' WHERE name LIKE 'columns%'")
    with pytest.raises(StorageFailed, match="other columns"):
        Journal(tmp_path, soft=None)
    with closing(JournalView(tmp_path)) as view:
        assert list(view.ids()) == [completion(1).id]
    Journal(tmp_path, soft="top-k").close()


def test_what_is_no_journal_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not a database, " * 100)
    with pytest.raises(StorageFailed, match=FILE_NAME):
        Journal(tmp_path, soft=None)


@pytest.mark.parametrize("name", ["plain", "50% of it? #1 & more"])
def test_a_view_reads_beside_the_writer_and_changes_nothing(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    with closing(JournalView(folder)) as view:
        assert (list(view.ids()), view.spent()) == ([], 0.0)
    assert not folder.exists()
    folder.mkdir()
    with Journal(folder, soft=None) as journal:
        asyncio.run(journal.commit(Change(outcomes=[completion(1)], reserve=(1, 0.5), spent_usd=0.25)))
        with closing(JournalView(folder)) as view:
            assert (list(view.ids()), view.spent()) == ([completion(1).id], 0.75)
        asyncio.run(journal.commit(Change(settle=1)))
        assert journal.spent() == 0.25
