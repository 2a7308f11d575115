"""How one crate was compiled, how it is compiled again, and how a patch of it is linked."""

from pathlib import Path
from typing import Any

from hotpatchd.core.capture import link_order
from hotpatchd.core.client import PatchKind
from hotpatchd.core.dylibplan import DylibPlan, plan_dylib_link
from hotpatchd.core.errors import UsageError
from hotpatchd.core.linkline import parse_link_line
from hotpatchd.core.linkplan import LinkPlan, plan_image_link
from hotpatchd.core.recipe import find_refusal
from hotpatchd.core.thinplan import Recipe, plan_thin_crates
from hotpatchd.daemon.capture_store import CaptureStore
from hotpatchd.daemon.fatbuild import Workspace


def explain_crate(
    workspace: Workspace, state_dir: Path, crate: str, recipe: Recipe, kind: PatchKind = "image"
) -> dict[str, Any]:
    """Put captured and edited commands side by side.

    Args:
        workspace: what was built.
        state_dir: the daemon's directory.
        crate: name of a package, binary, example or library.
        recipe: how objects are made.
        kind: what is linked of them.

    Returns:
        Plain JSON values: `crate`, `rustc`, `cwd`, `env`, `argv`, `edited_argv`, `edits` (rows of `flag`, `action`,
        `reason`), and for a linked crate `link_argv`, `link_plan`, `link_dropped`, `link_added` (rows of `flag`,
        `reason`).

    Raises:
        UsageError: there is no usable capture of the crate.
        ArgvError: programs of its target load no libraries.
    """
    listing = CaptureStore(state_dir / "captures").load_all()
    name = crate.replace("-", "_")
    found = [c for c in listing.captures if c.crate_name == name and not c.is_build_script]
    if not found:
        known = ", ".join(sorted({c.crate_name for c in listing.captures})) or "none"
        raise UsageError(
            f"no usable capture of crate `{crate}`; there are: {known}", hint="run `hotpatchd build` first"
        )
    # A package's library and binary may share a name: the binary is the one that is linked.
    capture = max(found, key=lambda c: c.link_line is not None)
    programs = [c for c in listing.captures if c.link_line and find_refusal(c.argv) is None]
    dirs = {str(package.manifest_path.parent) for package in workspace.packages}
    orders = (link_order(tip, listing.captures, dirs) for tip in ([capture] if capture.link_line else programs))
    order = next((order for order in orders if capture in order), (capture,))
    planned = plan_thin_crates(order, thin_dir=str(state_dir / "thin"), recipe=recipe)
    thin = next(crate for crate in planned if crate.capture == capture)
    explained: dict[str, Any] = {
        "crate": thin.name,
        "rustc": capture.rustc,
        "cwd": capture.cwd,
        "env": dict(capture.env),
        "argv": list(capture.argv),
        "edited_argv": list(thin.edited.argv),
        "out_dir": thin.out_dir,
        "edits": [{"flag": e.flag, "action": e.action, "reason": e.reason} for e in thin.edited.edits],
        "link_argv": None,
        "link_plan": None,
        "link_dropped": None,
        "link_added": None,
    }
    if capture.link_line:
        line = parse_link_line(capture.link_line)
        objects = ["OBJECTS", "STUB"]
        added: tuple[tuple[str, str], ...] = ()
        plan: LinkPlan | DylibPlan
        if kind == "image":
            plan = plan_image_link(line, linker="lld", objects=objects, output="PATCH", base_addr=0, keep=["FUNCTION"])
        else:
            plan = plan_dylib_link(line, target=capture.triple, objects=objects, output="PATCH", exports=["main"])
            added = plan.added
        explained["link_argv"] = list(line.argv)
        explained["link_plan"] = [*plan.argv, *plan.response.split()]
        explained["link_dropped"] = [{"flag": flag, "reason": reason} for flag, reason in plan.dropped]
        explained["link_added"] = [{"flag": flag, "reason": reason} for flag, reason in added]
    return explained
