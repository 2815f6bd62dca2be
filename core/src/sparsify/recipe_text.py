"""The YAML side of recipes: front matter, tags, numbers as people write them, and bounds on what a file may hold."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml  # noqa: TID253 - this module is loaded only once a recipe is read or written

from sparsify.errors import RequestError

_CHARACTERS = 2_000_000
_NODES = 100_000  # after aliases are expanded; the largest recipe in the field has about 4,000
_DEPTH = 50
_FRONT_MATTER = re.compile(r"^(?:---|\+\+\+)[ \t]*\r?\n(.*?)^(?:---|\+\+\+)[ \t]*\r?$", re.MULTILINE | re.DOTALL)
_COMMENTS = re.compile(r"(?:\s|<!--.*?-->|^#.*$)*", re.MULTILINE | re.DOTALL)
_FRAMEWORKS = ("pytorch.", "keras.", "tensorflow_v1.")
_INT = re.compile(r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+)$")
_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9_]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$"
    r"|\.(?:nan|NaN|NAN)$"
)

_FIXES = {  # by words of PyYAML's messages
    "undefined alias": "define the anchor (`name: &name 1`) above its use, or write eval(name)",
    "determine a constructor": "use modifier tags (!Name) only; Python and application tags are never executed",
    "single document": "keep one recipe in a file, or put the recipe between two `---` lines at the start",
    "'\\t'": "indent with spaces",
    "": "mend the YAML there; arguments are indented below their `- !Modifier`",
}


@dataclass(frozen=True)
class Tagged:
    """Hold one tagged mapping of a recipe, `!Name {options}`."""

    name: str
    options: Mapping[Any, Any]


def front_matter(text: str, source: str) -> str:
    """Return the block between the first two lines of `---` or `+++`, wherever they stand; raises RequestError."""
    found = _FRONT_MATTER.search(text)
    if found is None:
        fix = "put the recipe between two lines of --- , or into a .yaml file"
        raise RequestError(f"{source} has no front matter, a block between two lines of ---", fix=fix)
    return found.group(1)


def strip_front_matter(text: str) -> str:
    """Return the front matter where nothing but comments stands before it, else the text as it is."""
    found = _FRONT_MATTER.search(text)
    return found.group(1) if found and _COMMENTS.fullmatch(text, 0, found.start()) else text


def read_document(text: str, overrides: Mapping[str, Any], source: str) -> Any:
    """Read YAML into mappings, lists, scalars and `Tagged`; raises RequestError with the line.

    overrides replace the values of variables at the top and in stages, so that aliases of a variable follow it too.
    """
    if len(text) > _CHARACTERS:
        raise _too_large(source, f"{len(text):,} characters")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise RequestError(f"{source} is empty", fix="write a list of modifiers under `modifiers:`")
        _measure(root, source)
        replaced = list(_replacements(root, overrides))
        loader.replaced = {id(node): value for node, value in replaced}
        return loader.construct_document(root)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"character {chr(error.character)!r} is not allowed in YAML"
        raise RequestError(f"{source}, line {line}: {problem}", fix="remove it, and save as UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}" if mark else source
        said = f"{error.problem} {error.context}"
        fix = next(fix for words, fix in _FIXES.items() if words in said)
        raise RequestError(f"{where}: {error.problem or error.context}", fix=fix) from error


def write_document(document: Mapping[str, Any]) -> str:
    """Write a document as YAML, keys in their order; the same document gives the same bytes."""
    return yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=110, indent=2
    )


def _too_large(source: str, what: str) -> RequestError:
    return RequestError(
        f"{source} holds {what}; a recipe may hold {_CHARACTERS:,} characters and, aliases expanded, {_NODES:,} values "
        f"nested {_DEPTH} deep",
        fix="give a recipe file; split this one if it really is one",
    )


class _Loader(yaml.SafeLoader):
    """Read YAML as recipes mean it: 1e-7 is a number, 2:4 is a pattern, dates are text, keys are unique."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way to name resolvers
        first: [pair for pair in pairs if pair[0].rpartition(":")[2] in ("bool", "null", "merge")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.replaced: dict[int, Any] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _DEPTH:
            raise _refusal(f"values are nested more than {_DEPTH} deep", self.get_mark())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if id(node) in self.replaced:
            return self.replaced[id(node)]
        return super().construct_object(node, deep)


class _Dumper(yaml.SafeDumper):
    """Write YAML that YAML 1.1 readers understand as we do: what either takes for a number is quoted."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way to name resolvers
        first: list(pairs) for first, pairs in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        name = (key.tag, str(key.value))
        if name in seen and not key.tag.endswith(":merge"):
            raise _refusal(f"key '{key.value}' stands twice in one mapping", key.start_mark)
        seen.add(name)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    digits = str(node.value).replace("_", "")
    if len(digits) > 300:
        raise _refusal("number has more than 300 digits", node.start_mark)
    return int(digits, 0 if digits.lstrip("+-")[1:2] in ("x", "o", "b") else 10)  # 010 is ten


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(str(node.value).replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


def _construct_tagged(loader: _Loader, suffix: str, node: yaml.Node) -> Tagged:
    name = suffix
    for framework in _FRAMEWORKS:
        name = name.removeprefix(framework)
    if isinstance(node, yaml.MappingNode):
        return Tagged(name, _construct_mapping(loader, node))
    if isinstance(node, yaml.ScalarNode) and node.value in ("", "null", "~"):
        return Tagged(name, {})
    raise _refusal(f"!{name} is followed by no mapping of arguments", node.start_mark)


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.add_multi_constructor("!", _construct_tagged)
_Dumper.add_representer(Tagged, lambda dumper, item: dumper.represent_mapping(f"!{item.name}", item.options))
_Dumper.add_representer(tuple, lambda dumper, item: dumper.represent_list(item))


def _measure(root: yaml.Node, source: str) -> None:
    """Refuse self-containing values and alias bombs: PyYAML shares aliased nodes, but whoever walks them does not."""
    sizes: dict[int, tuple[int, int]] = {}
    under_way: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        if id(node) in under_way:
            raise _too_large(source, f"a value that contains itself (line {node.start_mark.line + 1})")
        if id(node) not in sizes:
            under_way.add(id(node))
            inner = [measure(child) for child in _children(node)]
            under_way.discard(id(node))
            size, depth = 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
            if size > _NODES or depth > _DEPTH:
                raise _too_large(source, f"{size:,} values nested {depth} deep")
            sizes[id(node)] = size, depth
        return sizes[id(node)]

    measure(root)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair


def _replacements(root: yaml.Node, overrides: Mapping[str, Any]) -> Iterator[tuple[yaml.Node, Any]]:
    """Yield the nodes that overrides replace: variables of the document and of its stages."""
    if not isinstance(root, yaml.MappingNode) or root.tag.startswith("!"):
        return
    stages = [node for key, node in root.value if _holds_groups(node) and "modifiers" not in str(key.value)]
    for scope in (root, *stages):
        for place, (key, value) in enumerate(scope.value):
            if str(key.value) in overrides and "modifiers" not in key.value:
                if value.start_mark.index < key.start_mark.index:  # an alias: replace it here, not where it was defined
                    value = copy.copy(value)
                    scope.value[place] = (key, value)
                yield value, overrides[key.value]


def _holds_groups(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode) and any("modifiers" in str(key.value) for key, _ in node.value)
