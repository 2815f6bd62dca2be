"""The YAML side of recipes: front matter, tags, numbers as people write them, and bounds on what a file may hold."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import yaml  # noqa: TID253 - this module is loaded only once a recipe is read or written

from sparsify.errors import RequestError
from sparsify.recipe import Step

_NODES = 100_000  # after aliases are expanded; the largest recipe in the field has about 4,000
_DEPTH = 50
_FRONT_MATTER = re.compile(r"^(?:---|\+\+\+)[ \t]*\r?\n(.*?)^(?:---|\+\+\+)[ \t]*\r?$", re.MULTILINE | re.DOTALL)
_COMMENTS = re.compile(r"(?:\s|<!--.*?-->|^#.*$)*", re.MULTILINE | re.DOTALL)
_FRAMEWORK = re.compile(r"^(?:pytorch|keras|tensorflow_v1)\.")
_NUMBER = re.compile(
    r"(?ai)[-+]?(0x[0-9a-f]+|0o[0-7]+|0b[01]+|(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[-+]?\d+)?|\.inf)$|\.nan$"
)

_FIXES = {  # by words of PyYAML's messages
    "undefined alias": "define the anchor (`name: &name 1`) above its use, or write eval(name)",
    "determine a constructor": "use modifier tags (!Name) only; Python and application tags are never executed",
    "single document": "keep one recipe in a file, or put the recipe between two `---` lines at the start",
    "'\\t'": "indent with spaces",
    "stands twice": "remove one of the two; arguments of another modifier are indented below its own `- !Modifier`",
    "": "mend the YAML there; arguments are indented below their `- !Modifier`",
}


def front_matter(text: str, *, anywhere: bool) -> str:
    """Return what stands between the first two lines of `---` or `+++`, after comments only unless `anywhere`."""
    found = _FRONT_MATTER.search(text)
    return found[1] if found and (anywhere or _COMMENTS.fullmatch(text, 0, found.start())) else ""


def read_document(text: str, overrides: Mapping[str, Any], source: str) -> Any:
    """Read YAML into mappings, lists, scalars and, of tags, steps; raises RequestError with the line.

    overrides replace the values of variables at the top, so that aliases of a variable follow it too.
    """
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
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        fix = next(fix for words, fix in _FIXES.items() if words in f"{error.problem} {error.context}")
        raise RequestError(f"{source}, line {line}: {error.problem}", fix=fix) from error


def read_number(value: Any) -> Any:
    """Turn numeric text into a number, as `--recipe-args` promises; anything else stays what it is."""
    if not isinstance(value, str) or not _NUMBER.match(value):
        return value
    digits = value.replace("_", "").lower()
    try:
        return int(digits, 0 if digits.lstrip("+-")[1:2] in ("x", "o", "b") else 10)  # 010 is ten
    except ValueError:
        return float(digits.replace(".inf", "inf").replace(".nan", "nan"))


def write_document(document: Mapping[str, Any]) -> str:
    """Write a document as YAML, keys in their order; the same document gives the same bytes."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=110)


def _too_large(source: str, what: str) -> RequestError:
    problem = f"{source} holds {what}; a recipe may hold {_NODES:,} values nested {_DEPTH} deep, aliases expanded"
    return RequestError(problem, fix="give a recipe file; split this one if it really is one")


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
        self.replaced: dict[yaml.Node, Any] = {}
        self.open: list[yaml.Node | None] = []  # the node being composed stands in these
        self.extents: dict[yaml.Node | None, tuple[int, int]] = {}  # values and depth of a node, aliases expanded

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse alias bombs and values that contain themselves: PyYAML shares aliased nodes, their readers do not."""
        self.open.append(parent)
        if len(self.open) > _DEPTH:
            raise _refusal(f"values are nested more than {_DEPTH} deep", self.get_mark())
        is_alias = self.check_event(yaml.AliasEvent)
        node: Any = super().compose_node(parent, index)
        if node in self.open:
            raise _too_large(self.source, f"a value that contains itself (line {node.start_mark.line + 1})")
        self.open.pop()
        size, depth = self.extents.get(node, (1, 1))
        if size > _NODES or depth > _DEPTH:
            raise _too_large(self.source, f"{size:,} values nested {depth} deep")
        beside, below = self.extents.get(parent, (1, 1))
        self.extents[parent] = beside + size, max(below, depth + 1)
        if len(self.open) == 1 and isinstance(index, yaml.ScalarNode) and index.value in self.variables:
            node = copy.copy(node) if is_alias else node  # of an alias only this use, of an anchor all its aliases
            self.replaced[node] = self.variables[index.value]
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        return self.replaced[node] if node in self.replaced else super().construct_object(node, deep)


class _Dumper(yaml.SafeDumper):
    """Write YAML that YAML 1.1 readers understand as we do: what either takes for a number is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        name = (key.tag, str(key.value))
        if name in seen and not key.tag.endswith(":merge"):
            raise _refusal(f"key '{key.value}' stands twice in one mapping", key.start_mark)
        seen.add(name)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


def _construct_number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    if len(node.value) > 300:
        raise _refusal("number has more than 300 digits", node.start_mark)
    return read_number(node.value)


def _construct_tagged(loader: _Loader, suffix: str, node: yaml.Node) -> Step:
    name = _FRAMEWORK.sub("", suffix)
    if isinstance(node, yaml.MappingNode):
        return Step(name, "", _construct_mapping(loader, node), "")
    if isinstance(node, yaml.ScalarNode) and node.value in ("", "null", "~"):
        return Step(name, "", {}, "")
    raise _refusal(f"!{name} is followed by no mapping of arguments", node.start_mark)


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("!number", _NUMBER, list("-+0123456789."))
_Loader.add_constructor("!number", _construct_number)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.add_multi_constructor("!", _construct_tagged)
_Dumper.add_representer(Step, lambda dumper, step: dumper.represent_mapping(f"!{step.name}", step.options))
