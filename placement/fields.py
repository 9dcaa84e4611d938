"""What is wrong with a value, told apart from the name of its field: who filled the field may know it by another."""

from collections.abc import Mapping
from typing import Self


class FieldError(ValueError):
    """A value that cannot be used.

    `problem` goes on where `fields` end, with the value and what is accepted: "is 0; it must be from 1 to 8." Without
    fields it is the whole sentence.
    """

    def __init__(self, problem: str, *fields: str) -> None:
        super().__init__(problem, *fields)
        self.problem, self.fields = problem, fields

    def __str__(self) -> str:
        return f"{' and '.join(self.fields)} {self.problem}" if self.fields else self.problem

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same of fields that are called `names[field]`, where they have a name there."""
        return type(self)(self.problem, *(names.get(field, field) for field in self.fields))
