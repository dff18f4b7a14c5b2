"""Chunks that list what they need of other strata."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from definitions_kit import check_order, loaded, mistakes, named, small, spec, stratum, system
from hypothesis import given
from hypothesis import strategies as st

from fabric.definitions.describe import tree
from fabric.definitions.graph import Graph
from fabric.definitions.least_depends import least_depends

CHUNK = "build-system: autotools"


def needs(*entries: str) -> str:
    """The lines of a chunk that build-depends on these."""
    return "\n".join([CHUNK, "build-depends:", *(f"- {entry}" for entry in entries)])


def of(stratum: str, *chunks: str) -> str:
    """An entry for chunks of another stratum; without chunks for all."""
    listed = f", chunks: [{', '.join(chunks)}]" if chunks else ""
    return f"{{stratum: strata/{stratum}.morph{listed}}}"


def definitions(*apps: str, depends: str = "libs") -> dict[str, str]:
    """A toolchain, libraries on it, and the stratum ``apps`` of these chunks."""
    return small(
        boot=stratum(
            "boot", spec("stage1", f"{CHUNK}\nbuild-mode: bootstrap"), spec("cc", needs("stage1"))
        ),
        libs=stratum("libs", spec("z"), spec("png", needs("z")), spec("tls"), depends="boot"),
        apps=stratum("apps", *apps, depends=depends),
    )


def staged(graph: Graph, chunk: str) -> list[str]:
    return [graph[one].name for one in named(graph, chunk).staged]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ((of("libs", "tls"),), ["cc", "tls"]),
        ((of("libs", "png"),), ["cc", "z", "png"]),
        ((of("libs", "tls", "z"), of("boot")), ["cc", "z", "tls"]),
        ((of("boot"),), ["cc"]),
        ((of("boot", "cc"), "other"), ["cc", "z", "png", "tls", "other"]),
        ((of("libs"),), ["cc", "z", "png", "tls"]),
    ],
)
def test_elsewhere_stages_what_is_listed_and_what_that_needs(
    entries: tuple[str, ...], expected: list[str]
) -> None:
    graph = loaded(definitions(spec("app", needs(*entries)), spec("other")))
    assert staged(graph, "app") == expected
    assert staged(graph, "other") == ["cc", "z", "png", "tls"]
    check_order(graph)


def test_elsewhere_brings_a_stratum_that_is_not_in_the_system() -> None:
    """Also without any `build-depends` of the stratum."""
    files = definitions(spec("app", needs(of("libs", "z"))))
    files["strata/apps.morph"] = files["strata/apps.morph"].replace("build-depends: libs\n", "")
    head, _, chunks = files["strata/apps.morph"].partition("chunks:")
    files["strata/apps.morph"] = f"{head.partition('build-depends')[0]}chunks:{chunks}"
    graph = loaded(files | {"systems/s.morph": system("apps")})
    assert staged(graph, "app") == ["cc", "z"]
    assert {step.name for step in graph.steps if step.in_system} == {"app", "apps", "s"}
    assert "app  (needs z)\n" in tree(graph)


def test_elsewhere_is_shown_in_trees() -> None:
    graph = loaded(definitions(spec("app", needs(of("boot"), of("libs", "z"))), depends=""))
    assert "app  (needs boot, z)\n" in tree(graph)


def test_elsewhere_must_be_in_all_chunks_of_a_stratum_without_build_depends() -> None:
    head, _, chunks = stratum("apps", spec("app", needs(of("boot"))), spec("b")).partition("chunks")
    files = definitions() | {"strata/apps.morph": f"{head.partition('build-')[0]}chunks{chunks}"}
    (found,) = mistakes(files)
    assert found.startswith("strata/apps.morph:1: stratum apps has no 'build-depends'")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (of("lib"), "11: chunk app names the file strata/lib.morph, which does not exist"),
        (of("libs", "zz"), "11: chunk app: it build-depends on 'zz', which is not a chunk of"
         " strata/libs.morph; did you mean 'z'?"),
        (of("libs", "cc"), "11: chunk app: it build-depends on 'cc', which is not a chunk of"
         " strata/libs.morph; it has z, png, tls"),
        (of("boot", "stage1"), "11: chunk app: it build-depends on 'stage1', a build-only chunk,"
         " which only chunks of its own strata see: leave it out"),
        (of("apps", "other"), "11: chunk app: strata/apps.morph is its own stratum: list the names"
         " of its chunks, without 'stratum'"),
        (of("libs", "z", "tls", "z"), "11: chunk app: build-depends: 'z' is listed in line 11"
         " already: remove it here"),
        (f"{of('libs', 'z')}\n- {of('libs', 'tls')}", "12: chunk app: it build-depends on"
         " strata/libs.morph in line 11 already: put all chunks of it into one list"),
        ("{stratum: strata/libs.morph, chunks: []}", "11: chunk app: build-depends: 'chunks' is"
         " empty: name the chunks that the build needs, remove the field if it needs all of them,"
         " or the entry if it needs none"),
        ("{stratum: strata/libs.morph, chunks: z}", "11: chunk app: build-depends: 'chunks' must be"
         " a list, not the text 'z'"),
        ("{stratum: strata/libs.morph, chunks: [1]}", "11: chunk app: build-depends: an item of"
         " 'chunks' is the number 1: put it in quotes"),
        ("{stratum: strata/libs.morph, chunk: [z]}", "11: chunk app: build-depends: unknown field"
         " 'chunk'; did you mean 'chunks'?"),
        ("{chunks: [z]}", "11: chunk app: build-depends: the field 'stratum' is missing"),
        ("{stratum: strata/apps/app.morph}", "11: chunk app names the file strata/apps/app.morph,"
         " which is a chunk, not a stratum"),
        (f"[z]\n- {of('libs')}", "11: chunk app: an item of 'build-depends' is a list, not text"),
    ],
)  # fmt: skip
def test_elsewhere_with_mistakes(entry: str, message: str) -> None:
    files = definitions(spec("app", needs(entry)), spec("other"))
    files["strata/apps/app.morph"] = "name: app\nkind: chunk\n"
    assert mistakes(files) == [f"strata/apps.morph:{message}"]


def test_elsewhere_across_strata_forms_no_cycle() -> None:
    files = small(
        x=stratum("x", spec("a", needs(of("y", "b"))), spec("c")),
        y=stratum("y", spec("b", needs(of("x", "c")))),
    )
    assert mistakes(files) == [
        "strata/x.morph:10: strata need each other in a cycle: x -> y -> x: remove one of these"
        " dependencies"
    ]


def shared(one: str, other: str) -> dict[str, str]:
    """A chunk in two strata, with these lines."""
    return definitions() | small(
        boot=definitions()["strata/boot.morph"],
        libs=definitions()["strata/libs.morph"],
        x=stratum("x", spec("app", one), depends="boot"),
        y=stratum("y", spec("app", other), depends="libs"),
    )


def test_elsewhere_of_a_shared_chunk_is_the_same_in_all_strata() -> None:
    same = needs(of("libs", "z"), of("boot"))
    assert staged(loaded(shared(same, needs(of("boot"), of("libs", "z")))), "app") == ["cc", "z"]
    for other in (CHUNK, needs(of("libs", "z"))):
        assert mistakes(shared(same, other)) == [
            f"strata/y.morph:{6 if other is CHUNK else 10}: chunk app: strata/x.morph:10 lists the"
            " same repo, ref and morph, and other chunks that it needs, but it is built only once:"
            " list the same in both, each with its stratum, or give one of them another name and"
            " morph"
        ]
    assert len(mistakes(shared(CHUNK, same))) == 1


@pytest.mark.parametrize(
    ("used", "unused", "enough"),
    [
        ("cc", "z png tls", [{"stratum": "strata/boot.morph"}]),
        ("cc z", "png tls", [{"stratum": "strata/libs.morph", "chunks": ["z"]}]),
        ("z png", "tls", [{"stratum": "strata/libs.morph", "chunks": ["png"]}]),
        ("cc z png tls", "", [{"stratum": "strata/libs.morph"}]),
        ("png tls", "", [{"stratum": "strata/libs.morph"}]),
        ("other cc", "", ["other", {"stratum": "strata/boot.morph"}]),
        ("other", "", ["other", {"stratum": "strata/boot.morph"}]),
        ("", "cc z png tls", []),
    ],
)
def test_least_depends_is_the_shortest_list(used: str, unused: str, enough: list[object]) -> None:
    other = spec("other")
    graph = loaded(definitions(spec("app", f"{CHUNK}\nbuild-depends: [other]"), other))
    if "other" not in used:
        graph = loaded(definitions(spec("app"), other))
    step = named(graph, "app")
    ids = {one for one in step.staged if graph[one].name in used.split()}
    least = least_depends(graph, step, ids)
    assert (" ".join(least.unused), least.build_depends) == (unused, enough)


# -- any definitions -----------------------------------------------------------------------


class Some(msgspec.Struct):
    """Definitions: stratum -> strata below; chunk -> chunks of its stratum, and its entries."""

    strata: dict[str, list[str]] = {}
    chunks: dict[str, list[str]] = {}
    bootstrap: set[str] = set()
    lists: dict[str, dict[str, list[str]]] = {}  # chunk -> stratum -> its chunks; [] is all

    def inside(self, stratum: str) -> list[str]:
        return [one for one in self.chunks if one.startswith(stratum)]

    def files(self, narrow: bool, wide: bool = True) -> dict[str, str]:
        found = {}
        for name, below in self.strata.items():
            specs = []
            for chunk in self.inside(name):
                lists = self.lists[chunk].items() if narrow else ()
                more = needs(*self.chunks[chunk], *(of(one, *listed) for one, listed in lists))
                more = more if more.count("\n") > 1 else CHUNK
                more += "\nbuild-mode: bootstrap" * (chunk in self.bootstrap)
                specs.append(spec(chunk, more))
            found[name] = stratum(name, *specs, depends=" ".join(below) if wide else "")
        return small(**found)

    def below(self, stratum: str) -> set[str]:
        """The stratum, and all strata under it."""
        return {stratum}.union(*(self.below(one) for one in self.strata[stratum]))

    def seen(self, chunk: str) -> set[str]:
        """The chunks that a chunk with lists needs, by the rules of the format."""
        found: set[str] = set()
        todo = [(one, one[0]) for one in self.chunks[chunk]]
        todo += self._listed(chunk)
        while todo:
            one, _ = todo.pop()
            if one not in found:
                found.add(one)
                todo += [(each, each[0]) for each in self.chunks[one]] + self._listed(one)
        return {one for one in found if one not in self.bootstrap or one[0] == chunk[0]}

    def _listed(self, chunk: str) -> list[tuple[str, str]]:
        lists = self.lists[chunk] or {one: [] for one in self.strata[chunk[0]]}
        found = []
        for name, listed in lists.items():
            whole = [one for each in self.below(name) for one in self.inside(each)]
            found += [(one, name) for one in listed or whole]
        return found


@st.composite
def some(draw: st.DrawFn) -> Some:
    made = Some({}, {}, set(), {})
    names = draw(st.permutations("abcde"))[: draw(st.integers(2, 5))]
    for name in names:
        below = list(made.strata)
        made.strata[name] = draw(st.lists(st.sampled_from(below), unique=True)) if below else []
        reach = sorted(made.below(name) - {name})
        for number in range(draw(st.integers(1, 3))):
            chunk = f"{name}{number}"
            earlier = made.inside(name)
            made.chunks[chunk] = (
                draw(st.lists(st.sampled_from(earlier), unique=True)) if earlier else []
            )
            if number and draw(st.integers(0, 2)) == 0:
                made.bootstrap.add(chunk)
            lists = draw(st.lists(st.sampled_from(reach), unique=True)) if reach else []
            made.lists[chunk] = {}
            for one in lists:
                choice = [each for each in made.inside(one) if each not in made.bootstrap]
                made.lists[chunk][one] = (
                    draw(st.lists(st.sampled_from(choice), unique=True)) if choice else []
                )
    return made


def is_subsequence(few: Iterator[str], many: Iterator[str]) -> bool:
    return all(one in many for one in few)


@given(some())
def test_elsewhere_stages_part_of_what_the_stratum_brings_in_the_same_order(made: Some) -> None:
    wide, narrow = loaded(made.files(narrow=False)), loaded(made.files(narrow=True))
    assert [step.id for step in narrow.steps] == [step.id for step in wide.steps]
    for step in narrow.steps:
        assert is_subsequence(iter(step.staged), iter(wide[step.id].staged))
        if step.kind == "chunk":
            assert {narrow[one].name for one in step.staged} == made.seen(step.name)


@given(some())
def test_elsewhere_stages_the_same_in_every_system(made: Some) -> None:
    files = made.files(narrow=True, wide=False)
    whole = loaded(files)
    for name in made.strata:
        part = loaded(files | {"systems/s.morph": system(name)})
        check_order(part)
        for step in part.steps:
            if step.kind == "chunk":
                assert step.staged == whole[step.id].staged


@given(some(), st.data())
def test_least_depends_stages_no_more_than_is_used(made: Some, data: st.DataObject) -> None:
    files = made.files(narrow=True)
    graph = loaded(files)
    chunk = data.draw(st.sampled_from(list(made.chunks)))
    step = named(graph, chunk)
    used = data.draw(st.sets(st.sampled_from(step.staged))) if step.staged else set()
    least = least_depends(graph, step, used)
    covered = used | {below for one in used for below in graph[one].staged}
    assert set(least.unused) == {graph[one].name for one in step.staged if one not in covered}
    if not any(isinstance(one, dict) for one in least.build_depends):
        assert {graph[one].name[0] for one in covered.intersection(step.staged)} <= {chunk[0]}
        return
    made.chunks[chunk] = [one for one in least.build_depends if isinstance(one, str)]
    made.lists[chunk] = {
        one["stratum"].removeprefix("strata/").removesuffix(".morph"): one.get("chunks", [])
        for one in least.build_depends
        if isinstance(one, dict)
    }
    after = named(loaded(made.files(narrow=True)), chunk)
    assert set(after.staged) == covered & set(step.staged)
