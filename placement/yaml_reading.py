"""YAML as configurations, settings and clusters mean it: plain values only, and a key given twice is a mistake."""

import re
from typing import Any

import yaml

_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_CLOCK = ("tag:yaml.org,2002:str", re.compile(r"\d+:\d+"))  # YAML 1.1 has 22:30 a number in base 60


class YamlError(ValueError):
    """Not a YAML document that values can be read from. The message follows the file's name and says where."""


class _Loader(yaml.SafeLoader):
    """The safe loader, without dates and times (2024-01-31 and 22:30 are text) and with an error for a repeated key."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML declares it without ClassVar)
        first: [_CLOCK, *((tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """The one document in `text`; None when it is empty. Raises `YamlError`."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlError(f"{where}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # PyYAML lets Python's own errors out of odd tags (`!!int x`), bad characters and very deep nesting.
        raise YamlError(f"is not YAML that can be read: {str(error).splitlines()[0]}") from error
