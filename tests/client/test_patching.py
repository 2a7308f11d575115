"""Patches take effect at once, in whole, and are taken back in whole."""

from pathlib import Path

import pytest

from tests.client.conftest import Stage

ANSWER_1000 = "int replaced(int n) { return n + 1001; }"


def adding(amount: int) -> str:
    """A body for `answer` that adds `amount`."""
    return f"int replaced(int n) {{ return n + {amount}; }}"


async def test_patched_function_is_called(stage: Stage) -> None:
    """After a patch, calls of the function run its new body, and the client says what it did."""
    async with stage.patching("host") as (program, peer):
        image = stage.image(ANSWER_1000, peer.hello, program, answer="replaced")
        assert await program.ask("answer") == "2"
        applied = await peer.apply(image.message, image.content)
        region = peer.hello["region"]
        assert applied["type"] == "applied"
        assert applied["next"] == region["next"] + region["slot_size"]
        assert applied["threads"] == 1
        assert applied["timings_us"].keys() == {"verify", "copy", "park", "total"}
        assert await program.ask("answer") == "1002"


async def test_program_at_a_fixed_address_is_patched(stage: Stage) -> None:
    """A program that is not position-independent has its region above it, and is patched all the same."""
    async with stage.patching("fixed") as (program, peer):
        assert peer.hello["slide"] == 0
        image = stage.image(ANSWER_1000, peer.hello, program, answer="replaced")
        await peer.apply(image.message, image.content)
        assert await program.ask("answer") == "1002"


async def test_patch_uses_host_functions_and_imports(stage: Stage) -> None:
    """A patch calls functions of the program, and those of shared libraries through slots that the client fills."""
    source = """
        int doubled(int);
        long (*import_labs)(long);
        long mapped(long n) { return import_labs(n); }
        int replaced(int n) { return doubled(n) + mapped(-40); }
    """
    async with stage.patching("host") as (program, peer):
        image = stage.image(source, peer.hello, program, answer="replaced")
        assert [entry["name"] for entry in image.message["imports"]] == ["labs"]
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        assert await program.ask("answer") == "42"


async def test_what_a_weak_import_names_may_be_missing(stage: Stage) -> None:
    """Its slot gets 0; one that is there is filled like any other."""
    source = """
        long (*import_no_such_function)(long);
        long (*import_labs)(long);
        int replaced(int n) { return import_no_such_function ? -1 : (int)import_labs(-7) + n; }
    """
    async with stage.patching("host") as (program, peer):
        image = stage.image(source, peer.hello, program, answer="replaced")
        weak = image.with_changes(imports=[{**entry, "weak": True} for entry in image.message["imports"]])
        assert (await peer.apply(weak.message, weak.content))["type"] == "applied"
        assert await program.ask("answer") == "8"


async def test_libraries_are_loaded_for_imports(stage: Stage) -> None:
    """The program was not linked with the one that has the function."""
    source = """
        double (*import_cbrt)(double);
        int replaced(int n) { return n + (int)import_cbrt(27.0); }
    """
    async with stage.patching("host") as (program, peer):
        image = stage.image(source, peer.hello, program, answer="replaced")
        assert (await peer.apply(image.message, image.content))["reason"] == "import"
        found = image.with_changes(libraries=["/nowhere/libnone.so", "libm.so.6"])
        assert (await peer.apply(found.message, found.content))["type"] == "applied"
        assert await program.ask("answer") == "4"


async def test_busy_threads_never_see_half_a_patch(stage: Stage) -> None:
    """A hundred patches in a row under eight threads that call the function: each call gives an old or a new answer."""
    async with stage.patching("host", "8") as (program, peer):
        region = peer.hello["region"]
        source = "int replaced(int n) { return n + 0x11223344; }"
        image = stage.image(source, peer.hello, program, answer="replaced")
        for number in range(100):
            amount = 1001 + 1000 * number
            numbered = image.with_content((0x11223344).to_bytes(4, "little"), amount.to_bytes(4, "little"))
            numbered = numbered.moved(number * region["slot_size"])
            applied = await peer.apply(numbered.message, numbered.content)
            assert (applied["type"], applied["threads"]) == ("applied", 9)
        assert await program.ask("progress") == "1"
        assert await program.ask("answer") == "100002"
        assert await program.ask("wrong") == "0"


async def test_undo_restores_every_byte(stage: Stage) -> None:
    """Undo brings back the bytes as the named patch had left them, and in the end as the program's file has them."""
    async with stage.patching("host") as (program, peer):
        original = await program.ask("bytes")
        first = stage.image(adding(5), peer.hello, program, answer="replaced")
        applied = await peer.apply(first.message, first.content)
        after_first = await program.ask("bytes")
        second = stage.image(
            adding(7), peer.hello, program, next_addr=applied["next"], answer="replaced", doubled="replaced"
        )
        await peer.apply(second.message, second.content)
        assert await program.ask("answer") == "8"
        assert (await peer.undo(first.id))["type"] == "applied"
        assert await program.ask("bytes") == after_first
        assert await program.ask("answer") == "6"
        assert (await peer.undo(None))["type"] == "applied"
        assert await program.ask("bytes") == original != after_first
        assert await program.ask("answer") == "2"


async def test_undo_of_several_patches_of_a_function_is_one_step(stage: Stage) -> None:
    """Two patches of the same function are taken back together, to the bytes from before the older one."""
    async with stage.patching("host") as (program, peer):
        original = await program.ask("bytes")
        image = stage.image(ANSWER_1000, peer.hello, program, answer="replaced")
        for number in range(2):
            moved = image.moved(number * peer.hello["region"]["slot_size"])
            assert (await peer.apply(moved.message, moved.content))["type"] == "applied"
        await peer.undo(None)
        assert await program.ask("bytes") == original


async def test_undo_to_an_unknown_patch_is_refused(stage: Stage) -> None:
    """Undo to a patch that is not in force changes nothing."""
    async with stage.patching("host") as (program, peer):
        image = stage.image(ANSWER_1000, peer.hello, program, answer="replaced")
        await peer.apply(image.message, image.content)
        assert (await peer.undo("0" * 64))["reason"] == "unknown_patch"
        assert await program.ask("answer") == "1002"


async def test_function_that_never_returns_is_on_the_stack(stage: Stage) -> None:
    """The answer names the threads that run a replaced function's old body, down to the outermost frames."""
    source = "int again(void) { return 0; } void *waits(void *p) { return p; }"
    async with stage.patching("host", "2") as (program, peer):
        await program.ask("waiter")
        image = stage.image(source, peer.hello, program, serve="again", wait_for_byte="waits")
        applied = await peer.apply(image.message, image.content)
        names = {
            detour["from"]: threads
            for detour, threads in zip(image.message["detours"], [["main"], ["waiter"]], strict=True)
        }
        assert {entry["from"]: entry["threads"] for entry in applied["on_stack"]} == names


async def test_function_that_is_not_running_is_not_on_the_stack(stage: Stage) -> None:
    """A replaced function that no thread runs is not reported."""
    async with stage.patching("host") as (program, peer):
        image = stage.image(ANSWER_1000, peer.hello, program, answer="replaced")
        assert (await peer.apply(image.message, image.content))["on_stack"] == []


async def test_body_of_an_earlier_patch_is_on_the_stack(stage: Stage) -> None:
    """A thread that stays in a body that an earlier patch brought is reported when the next one comes."""
    source = """
        long (*import_pause)(void);
        void *waits(void *p) { for (;;) import_pause(); return p; }
    """
    async with stage.patching("host") as (program, peer):
        first = stage.image(source, peer.hello, program, wait_for_byte="waits")
        applied = await peer.apply(first.message, first.content)
        assert applied["on_stack"] == []
        await program.ask("waiter")
        await stage.wait_for_syscall(program, "waiter", "pause")
        second = stage.image(
            "void *gone(void *p) { return p; }", peer.hello, program, next_addr=applied["next"], wait_for_byte="gone"
        )
        applied = await peer.apply(second.message, second.content)
        assert [entry["threads"] for entry in applied["on_stack"]] == [["waiter"]]


async def test_thread_about_to_return_into_the_detour_holds_the_patch_off(stage: Stage) -> None:
    """A patch whose detour would cover an address that a thread returns to is refused until the thread is gone."""
    async with stage.patching("host") as (program, peer):
        await program.ask("early caller")
        await stage.wait_for_syscall(program, "early", "read")
        image = stage.image("void early(void (*f)(void)) { f(); }", peer.hello, program, early_call="early")
        refused = await peer.apply(image.message, image.content)
        assert (refused["type"], refused["reason"]) == ("refused", "park")
        assert "thread early" in refused["detail"]
        await program.ask("free")
        await stage.wait_for_end(program, "early")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"


async def test_thread_that_blocks_all_signals_is_parked(stage: Stage) -> None:
    """A thread that blocks every signal with libc's functions does not stand in the way."""
    async with stage.patching("host") as (program, peer):
        await program.ask("masked")
        await stage.wait_for_syscall(program, "masked", "read")
        image = stage.image(ANSWER_1000, peer.hello, program, answer="replaced")
        applied = await peer.apply(image.message, image.content)
        assert (applied["type"], applied["threads"]) == ("applied", 2)


async def test_thread_that_cannot_be_parked_is_named(stage: Stage) -> None:
    """A thread that blocks even libc's own signals stops the patch, not the program; later patches are not harmed."""
    async with stage.patching("host", "2") as (program, peer):
        disposition = await program.ask("handler")
        await program.ask("masked raw")
        await stage.wait_for_syscall(program, "masked-raw", "read")
        image = stage.image(ANSWER_1000, peer.hello, program, answer="replaced")
        refused = await peer.apply(image.message, image.content)
        assert refused["reason"] == "park"
        assert refused["detail"].startswith("thread masked-raw blocks signal 32")
        assert await program.ask("progress") == "1"
        assert await program.ask("answer") == "2"
        assert await program.ask("handler") == disposition
        await program.ask("free")
        await stage.wait_for_end(program, "masked-raw")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"


async def test_signal_handler_is_put_back(stage: Stage) -> None:
    """Once threads go on, the signal that stopped them has the disposition that it had before.

    That is not always the default: glibc's `posix_spawn`, which make uses, starts programs with it ignored.
    """
    async with stage.patching("host") as (program, peer):
        disposition = await program.ask("handler")
        image = stage.image(ANSWER_1000, peer.hello, program, answer="replaced")
        await peer.apply(image.message, image.content)
        assert await program.ask("handler") == disposition


async def test_code_is_written_where_the_kernel_guards_proc_mem(stage: Stage) -> None:
    """Where writing through `/proc/self/mem` is refused, patches are written through the pages themselves."""
    async with stage.patching("host") as (program, peer):
        assert await program.ask("forbid pwrite") == "0"
        image = stage.image(ANSWER_1000, peer.hello, program, answer="replaced")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
        assert await program.ask("answer") == "1002"
        assert "rwx" not in Path(f"/proc/{program.pid}/maps").read_text()


@pytest.mark.parametrize("command", ["fork", "exec"])
async def test_processes_that_the_program_starts_run_as_before(stage: Stage, command: str) -> None:
    """A forked child runs the patched code without a client; a program that it executes is not touched."""
    async with stage.patching("host") as (program, peer):
        image = stage.image("int replaced(int n) { return n + 41; }", peer.hello, program, answer="replaced")
        await peer.apply(image.message, image.content)
        assert await program.ask(command) == {"fork": "42", "exec": "0"}[command]
        assert (await peer.undo(None))["type"] == "applied"
        assert await program.ask("answer") == "2"


async def test_program_that_closes_all_descriptors_stays_connected(stage: Stage) -> None:
    """The client's connection is not among the program's descriptors."""
    async with stage.patching("host") as (program, peer):
        assert await program.ask("close all") == "0"
        image = stage.image(ANSWER_1000, peer.hello, program, answer="replaced")
        assert (await peer.apply(image.message, image.content))["type"] == "applied"
