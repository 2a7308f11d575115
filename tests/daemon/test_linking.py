"""Linking with a cache, with the system's linker."""

import subprocess
from pathlib import Path

import pytest

from hotpatchd.core.errors import BuildError
from hotpatchd.core.linkline import LinkLine
from hotpatchd.core.linkplan import plan_image_link
from hotpatchd.daemon.linking import LinkCache, run_linker
from hotpatchd.daemon.object_cache import ObjectCache

# A linker that leaves a note each time it runs.
COUNTING = '#!/bin/sh\necho >> "{notes}"\nexec cc "$@"\n'


class Links:
    """A linker, and a cache of what it links."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes = root / "notes"
        self.notes.touch()
        driver = root / "driver"
        driver.write_text(COUNTING.format(notes=self.notes))
        driver.chmod(0o755)
        self.line = LinkLine(env=(), argv=(str(driver), "main.o", "-o", "program"))
        self.cache = LinkCache(ObjectCache(root / "cache"), host="b1", linker="GNU ld")

    def object(self, client: str, body: str) -> Path:
        """An object in a client's own directory."""
        path = self.root / client / "0.o"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        argv = ["cc", "-c", "-x", "c", "-", "-o", str(path)]
        subprocess.run(argv, input=body, text=True, check=True)
        return path

    async def link(self, client: str, body: str, base_addr: int = 0x7000_0000) -> bytes:
        """Link a patch for a client."""
        path = self.object(client, body)
        output, response = path.with_name("patch.elf"), path.with_name("link.args")
        output.unlink(missing_ok=True)
        plan = plan_image_link(
            self.line, linker="bfd", objects=[str(path)], output=str(output), base_addr=base_addr, keep=["f"]
        )
        response.write_text(plan.response)
        await self.cache.run(plan.argv, response, self.line, output, [path])
        return output.read_bytes()

    def runs(self) -> int:
        """How often the linker ran."""
        return len(self.notes.read_text().splitlines())


@pytest.fixture
def links(tmp_path: Path) -> Links:
    """An empty cache."""
    return Links(tmp_path)


async def test_what_was_linked_for_one_client_is_not_linked_for_another(links: Links) -> None:
    """They have directories of their own; addresses and content are what counts."""
    first = await links.link("one", "int f(void) { return 1; }")
    assert await links.link("two", "int f(void) { return 1; }") == first
    assert links.runs() == 1


async def test_other_content_and_other_addresses_are_linked(links: Links) -> None:
    """Each is another file."""
    found = {
        await links.link("one", "int f(void) { return 1; }"),
        await links.link("one", "int f(void) { return 2; }"),
        await links.link("one", "int f(void) { return 1; }", base_addr=0x7100_0000),
    }
    assert (len(found), links.runs()) == (3, 3)


async def test_a_linked_file_can_be_written_into(links: Links) -> None:
    """What was stored, and what came from the cache, are files of their own."""
    first = await links.link("one", "int f(void) { return 1; }")
    for _ in range(2):
        (links.root / "one" / "patch.elf").write_bytes(b"signed")
        assert await links.link("one", "int f(void) { return 1; }") == first
    assert links.runs() == 1


async def test_a_damaged_file_is_linked_anew(links: Links) -> None:
    """It is noticed before it is used."""
    first = await links.link("one", "int f(void) { return 1; }")
    for blob in (links.root / "cache" / "blobs").iterdir():
        blob.write_bytes(b"damaged")
    assert await links.link("one", "int f(void) { return 1; }") == first
    assert links.runs() == 2


async def test_a_cache_that_cannot_be_used_is_done_without(links: Links) -> None:
    """The patch is linked all the same."""
    (links.root / "cache").touch()
    assert await links.link("one", "int f(void) { return 1; }")
    assert await links.link("one", "int f(void) { return 1; }")
    assert links.runs() == 2


async def test_a_failed_link_is_told_of(tmp_path: Path) -> None:
    """With the linker's own words."""
    line = LinkLine(env=(), argv=("cc",))
    with pytest.raises(BuildError, match="exit status 1") as raised:
        await run_linker(["cc", "gone.o"], line, tmp_path / "out")
    assert "gone.o" in raised.value.output
