"""The YAML side of recipes: front matter, tags, numbers as people write them, and bounds on what a file may hold."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import yaml  # noqa: TID253 - this module is loaded only once a recipe is read or written

from sparsify.errors import RequestError

_TAG = "tag:yaml.org,2002:"
_CHARACTERS = 2_000_000
_NODES = 100_000  # after aliases are expanded; the largest recipe in the field has about 4,000
_DEPTH = 50
_FRONT_MATTER = re.compile(r"^(?:---|\+\+\+)[ \t]*\r?\n(.*?)^(?:---|\+\+\+)[ \t]*\r?$", re.MULTILINE | re.DOTALL)
_COMMENTS = re.compile(r"(?:\s|<!--.*?-->|^#.*$)*", re.MULTILINE | re.DOTALL)
_FRAMEWORK = re.compile(r"^(?:pytorch|keras|tensorflow_v1)\.")
_INT = re.compile(r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)$")
_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
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


def front_matter(text: str, *, anywhere: bool) -> str | None:
    """Return the block between the first two lines of `---` or `+++`, which only comments precede unless `anywhere`."""
    found = _FRONT_MATTER.search(text)
    return found[1] if found and (anywhere or _COMMENTS.fullmatch(text, 0, found.start())) else None


def read_document(text: str, overrides: Mapping[str, Any], source: str) -> Any:
    """Read YAML into mappings, lists, scalars and `Tagged`; raises RequestError with the line.

    overrides replace the values of variables at the top, so that aliases of a variable follow it too.
    """
    if len(text) > _CHARACTERS:
        raise _too_large(source, f"{len(text):,} characters")
    try:
        loader = _Loader(text, overrides, source)
        root = loader.get_single_node()
        if root is None:
            raise RequestError(f"{source} is empty", fix="write a list of modifiers under `modifiers:`")
        return loader.construct_document(root)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"{source}, line {line}: character {chr(error.character)!r} is not allowed in YAML"
        raise RequestError(problem, fix="remove it, and save as UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}" if mark else source
        said = f"{error.problem} {error.context}"
        fix = next(fix for words, fix in _FIXES.items() if words in said)
        raise RequestError(f"{where}: {error.problem or error.context}", fix=fix) from error


def write_document(document: Mapping[str, Any]) -> str:
    """Write a document as YAML, keys in their order; the same document gives the same bytes."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=110)


def _too_large(source: str, what: str) -> RequestError:
    bounds = f"{_CHARACTERS:,} characters and, aliases expanded, {_NODES:,} values nested {_DEPTH} deep"
    fix = "give a recipe file; split this one if it really is one"
    return RequestError(f"{source} holds {what}; a recipe may hold {bounds}", fix=fix)


def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


class _Loader(yaml.SafeLoader):
    """Read YAML as recipes mean it: 1e-7 is a number, 2:4 is a pattern, dates are text, keys are unique."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way to name resolvers
        first: [pair for pair in pairs if pair[0].rpartition(":")[2] in ("bool", "null", "merge")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str, overrides: Mapping[str, Any], source: str) -> None:
        super().__init__(text)
        self.source = source
        self.variables = {name: value for name, value in overrides.items() if "modifiers" not in name}
        self.depth = 0
        self.extents: dict[yaml.Node, tuple[int, int]] = {}  # values and depth below each node, aliases expanded
        self.replaced: dict[yaml.Node, Any] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse alias bombs and values that contain themselves: PyYAML shares aliased nodes, their readers do not."""
        self.depth += 1
        if self.depth > _DEPTH:
            raise _refusal(f"values are nested more than {_DEPTH} deep", self.get_mark())
        is_alias = self.check_event(yaml.AliasEvent)
        node: Any = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and node not in self.extents:
            raise _too_large(self.source, f"a value that contains itself (line {node.start_mark.line + 1})")
        if not is_alias:
            inner = [self.extents[child] for child in _children(node)]
            size, depth = 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
            if size > _NODES or depth > _DEPTH:
                raise _too_large(self.source, f"{size:,} values nested {depth} deep")
            self.extents[node] = size, depth
        if self.depth == 1 and isinstance(index, yaml.ScalarNode) and index.value in self.variables:
            node = copy.copy(node) if is_alias else node  # of an alias only this use, of an anchor all its aliases
            self.replaced[node] = self.variables[index.value]
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        return self.replaced[node] if node in self.replaced else super().construct_object(node, deep)


class _Dumper(yaml.SafeDumper):
    """Write YAML that YAML 1.1 readers understand as we do: what either takes for a number is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return chain(*node.value)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        name = (key.tag, str(key.value))
        if name in seen and not key.tag.endswith(":merge"):
            raise _refusal(f"key '{key.value}' stands twice in one mapping", key.start_mark)
        seen.add(name)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


def _construct_number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    digits = node.value.replace("_", "").lower()
    if len(digits) > 300:
        raise _refusal("number has more than 300 digits", node.start_mark)
    if node.tag == _TAG + "float":
        return float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    return int(digits, 0 if digits.lstrip("+-")[1:2] in ("x", "o", "b") else 10)  # 010 is ten


def _construct_tagged(loader: _Loader, suffix: str, node: yaml.Node) -> Tagged:
    name = _FRAMEWORK.sub("", suffix)
    if isinstance(node, yaml.MappingNode):
        return Tagged(name, _construct_mapping(loader, node))
    if isinstance(node, yaml.ScalarNode) and node.value in ("", "null", "~"):
        return Tagged(name, {})
    raise _refusal(f"!{name} is followed by no mapping of arguments", node.start_mark)


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_TAG + "int", _INT, list("-+0123456789"))
    _kind.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor(_TAG + "map", _construct_mapping)
_Loader.add_constructor(_TAG + "int", _construct_number)
_Loader.add_constructor(_TAG + "float", _construct_number)
_Loader.add_multi_constructor("!", _construct_tagged)
_Dumper.add_representer(Tagged, lambda dumper, item: dumper.represent_mapping(f"!{item.name}", item.options))
