"""The types of an object, from its debug information."""

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache

from hotpatchd.core.errors import ObjectError
from hotpatchd.core.layout import Field, FunctionTypes, Layout, TraitObject, Uses, Variant
from hotpatchd.objfile import debug_entries as dwarf
from hotpatchd.objfile.debug_entries import DebugSections, Entries, Entry

_AGGREGATES = frozenset((dwarf.STRUCTURE, dwarf.UNION, dwarf.ENUMERATION))
_PATHS = _AGGREGATES | {dwarf.NAMESPACE}
_LAYOUT_TAGS = _PATHS | {
    *(dwarf.ARRAY, dwarf.SUBRANGE, dwarf.POINTER, dwarf.MEMBER, dwarf.VARIANT_PART, dwarf.VARIANT),
    *(dwarf.ENUMERATOR, dwarf.BASE, dwarf.FUNCTION_TYPE),
}
_USE_TAGS = frozenset((dwarf.SUBPROGRAM, dwarf.PARAMETER, dwarf.VARIABLE, dwarf.BLOCK, dwarf.INLINED, dwarf.GENERIC))

_TABLE, _TABLE_TYPE = "::{vtable}", "::{vtable_type}"

_OWNER = "core::marker::PhantomData<"
"""What a type has in place of fields of another type that it owns or leads to all the same."""

_KNOWN_LAYOUTS = 1 << 16
"""How many layouts are remembered: the objects of a crate describe the same types, each of them anew."""

_RawField = tuple[str, int, str]
"""Name, offset and type of a field."""

_RawVariant = tuple[str, int | None, tuple[_RawField, ...]]
"""Name, tag and content of a variant."""


class ObjectTypes:
    """The types that an object's debug information describes; none where it has no such.

    Args:
        obj: the object.

    Raises:
        ObjectError: its debug information cannot be read; at the first access.
    """

    def __init__(self, obj: DebugSections) -> None:
        self._obj = obj

    def mention(self, functions: Iterable[str]) -> bool:
        """Whether any of these functions may be around something that is described; by its name, without modules."""
        names = b"|".join(re.escape(name.encode()) for name in sorted(functions)) or rb"(?!)"
        # That of a namespace, or part of a type's parameters.
        pattern = rb"(?:^|[\0:])(?:%s)(?:\0|::\{)" % names
        return re.search(pattern, self._obj.named_contents(".debug_str")) is not None

    @cached_property
    def layouts(self) -> Mapping[str, frozenset[Layout]]:
        """Path → layout; several where types share a path."""
        return self._read(_LAYOUT_TAGS).layouts()

    @property
    def uses(self) -> Uses:
        """What holds which types. Asked for only when a layout changed, since functions take time to read."""
        return self._whole[0]

    @property
    def virtual_tables(self) -> Mapping[TraitObject, int]:
        """Trait object → where in `.debug_info` the location of its virtual table is. As `uses`, it takes time."""
        return self._whole[1]

    @cached_property
    def _whole(self) -> tuple[Uses, Mapping[TraitObject, int]]:
        found = self._read(_LAYOUT_TAGS | _USE_TAGS)
        # They need not be read by themselves any more.
        self.__dict__.setdefault("layouts", found.layouts())
        return found.uses(), found.tables

    def _read(self, tags: frozenset[int]) -> "_Types":
        try:
            return _Types(Entries(self._obj, tags))
        except (IndexError, KeyError, ValueError, RecursionError, struct.error) as error:
            raise ObjectError(f"{self._obj.origin}: its debug information cannot be read: {error!r}") from error


class _Types:
    """What the entries say of types."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._paths: dict[int, str] = {}
        self._layouts: dict[str, frozenset[Layout]] = {}
        self._parts: dict[str, set[str]] = {}
        self._parameters: dict[str, set[str]] = {}
        self._functions: dict[str, FunctionTypes] = {}
        self._statics: dict[str, str] = {}
        self._trait_objects: set[TraitObject] = set()
        self.tables: dict[TraitObject, int] = {}
        for entry in entries.all.values():
            tag = entry.shape.tag
            if tag in _AGGREGATES:
                self._aggregate(entry)
            elif tag in (dwarf.POINTER, dwarf.ARRAY):
                self._part(entry, self._type(entry))
            elif tag == dwarf.SUBPROGRAM and (entry.has(dwarf.LOW_PC) or entry.has(dwarf.RANGES)):
                self._function(entry)
            elif tag == dwarf.VARIABLE and (entry.parent is None or entry.parent.tag == dwarf.NAMESPACE):
                self._static(entry)

    def layouts(self) -> dict[str, frozenset[Layout]]:
        return self._layouts

    def uses(self) -> Uses:
        # `Vec<T>` leads to values by a pointer that does not say to what.
        given = {path: parameters - {""} for path, parameters in self._parameters.items()}
        return Uses(
            parts={path: frozenset(parts | given.get(path, set())) for path, parts in self._parts.items()},
            made_for={path: frozenset(parameters - self._parts[path]) for path, parameters in given.items()},
            functions=self._functions,
            statics=self._statics,
            trait_objects=frozenset(self._trait_objects),
        )

    def _name(self, entry: Entry) -> str:
        """The symbol of a function or static, which is its own name if it is not mangled."""
        return self._string(entry, dwarf.LINKAGE_NAME) or self._string(entry, dwarf.NAME)

    def _static(self, entry: Entry) -> None:
        name = self._name(entry)
        if not name.endswith(_TABLE):
            self._statics[name] = self._type(entry)
            return
        table, location = self._entries.referred(entry, dwarf.TYPE), entry.get(dwarf.LOCATION)
        made = self._trait_object(table) if table and location is not None else None
        if made is not None and location is not None:
            self.tables[made] = location

    def _trait_object(self, table: Entry) -> TraitObject | None:
        """What the type of a virtual table is the table of."""
        path, containing = self._path(table), self._entries.referred(table, dwarf.CONTAINING)
        if containing is None or not path.endswith(_TABLE_TYPE):
            return None
        held = self._path(containing)
        return TraitObject(
            type=held, trait=path.removesuffix(_TABLE_TYPE).removeprefix(f"<{held} as ").removesuffix(">")
        )

    def _path(self, entry: Entry) -> str:
        """The path of a type, by which it is known in all objects."""
        path = self._paths.get(entry.at)
        if path is None:
            own = self._entries.string(entry, dwarf.NAME)
            if entry.tag == dwarf.ARRAY:
                counts = [child.get(dwarf.COUNT) for child in entry.children if child.tag == dwarf.SUBRANGE]
                own = f"[{self._type(entry)}; {counts[0] if counts else None}]"
            outer = self._path(entry.parent) if entry.parent is not None and entry.parent.tag in _PATHS else ""
            path = self._paths[entry.at] = f"{outer}::{own}" if outer else own
        return path

    def _type(self, entry: Entry) -> str:
        """The path of the type of a member, variable, pointer target or result; empty for `()` as a result."""
        found = self._entries.referred(entry, dwarf.TYPE)
        if found is not None:
            return self._path(found)
        completed = self._completed(entry)
        return "" if completed is None else self._type(completed)

    def _string(self, entry: Entry, attribute: int) -> str:
        """A name of an entry, or of those that it completes."""
        text, completed = self._entries.string(entry, attribute), self._completed(entry)
        return text if text or completed is None else self._string(completed, attribute)

    def _completed(self, entry: Entry) -> Entry | None:
        """The declaration or abstract entry that another one completes."""
        found = self._entries.referred(entry, dwarf.SPECIFICATION)
        return self._entries.referred(entry, dwarf.ABSTRACT_ORIGIN) if found is None else found

    def _part(self, entry: Entry, part: str) -> None:
        if part:
            self._parts.setdefault(self._path(entry), set()).add(part)

    def _fields(self, entry: Entry) -> list[_RawField]:
        return [
            (
                self._entries.string(child, dwarf.NAME).removeprefix("__"),
                child.get(dwarf.OFFSET) or 0,
                self._type(child),
            )
            for child in entry.children
            if child.shape.tag == dwarf.MEMBER
        ]

    def _aggregate(self, entry: Entry) -> None:
        if entry.has(dwarf.CONTAINING):
            made = self._trait_object(entry)
            if made is not None:
                self._trait_objects.add(made)
            return
        size = entry.get(dwarf.SIZE)
        if entry.has(dwarf.DECLARATION) or size is None:
            return
        fields = self._fields(entry)
        variants: list[_RawVariant] = []
        generic: set[str] = set()
        for child in entry.children:
            tag = child.shape.tag
            if tag == dwarf.VARIANT_PART:
                # The field that holds the tag of an enum with data.
                fields += [("(tag)", offset, type_) for _, offset, type_ in self._fields(child)]
                variants += self._variants(child)
            elif tag == dwarf.ENUMERATOR:
                variants.append((self._entries.string(child, dwarf.NAME), child.get(dwarf.CONST_VALUE), ()))
            elif tag == dwarf.GENERIC:
                generic.add(self._type(child))
        layouts, parts = _layout(size, entry.get(dwarf.ALIGNMENT) or 1, tuple(fields), tuple(variants))
        path = self._path(entry)
        self._layouts[path] = self._layouts[path] | layouts if path in self._layouts else layouts
        self._parts.setdefault(path, set()).update(parts)
        if path.startswith(_OWNER):
            self._parts[path] |= generic - {""}
        elif generic:
            self._parameters.setdefault(path, set()).update(generic)

    def _variants(self, entry: Entry) -> Iterator[_RawVariant]:
        for child in entry.children:
            if child.tag == dwarf.VARIANT:
                for name, offset, type_ in self._fields(child):
                    yield name, child.get(dwarf.DISCR_VALUE), (("0", offset, type_),)

    def _function_path(self, entry: Entry) -> str:
        completed = self._completed(entry)
        return self._path(entry) if completed is None else self._function_path(completed)

    def _function(self, entry: Entry) -> None:
        parameters = [self._type(one) for one in entry.children if one.tag == dwarf.PARAMETER]
        signature = {*parameters, self._type(entry)}
        generic = {self._type(one) for one in entry.children if one.tag == dwarf.GENERIC}
        every = signature | generic
        waiting = list(entry.children)
        while waiting:
            inner = waiting.pop()
            tag = inner.shape.tag
            if tag in (dwarf.PARAMETER, dwarf.VARIABLE):
                every.add(self._type(inner))
            if tag not in _AGGREGATES and tag != dwarf.SUBPROGRAM:
                waiting += inner.children
        self._functions[self._name(entry)] = FunctionTypes(
            path=self._function_path(entry),
            parameters=(*parameters, self._type(entry)),
            signature=frozenset(signature - {""}),
            generic=frozenset(generic - {""}),
            all=frozenset(every - {""}),
        )


@lru_cache(_KNOWN_LAYOUTS)
def _layout(
    size: int, align: int, fields: tuple[_RawField, ...], variants: tuple[_RawVariant, ...]
) -> tuple[frozenset[Layout], frozenset[str]]:
    """A layout, as a set of one, and the types that are parts of it."""

    def made(raw: tuple[_RawField, ...]) -> tuple[Field, ...]:
        return tuple(Field(name=name, offset=offset, type=type_) for name, offset, type_ in sorted(raw))

    layout = Layout(
        size=size,
        align=align,
        fields=made(fields),
        variants=tuple(
            Variant(name=name, tag=tag, fields=made(content))
            for name, tag, content in sorted(variants, key=lambda variant: variant[0])
        ),
    )
    contents = (fields, *(content for _, _, content in variants))
    return frozenset((layout,)), frozenset(type_ for content in contents for _, _, type_ in content) - {""}
