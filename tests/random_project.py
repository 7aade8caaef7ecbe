"""Projects of some modules that refer to each other in all ways that names allow, and random edits of them.

A project is a list of elements, each in a module and with numbers of its own. Elements refer only to those before them,
so every call ends. `Project.write()` makes the files anew; an edit changes what some calls give, or nothing but how the
text looks.
"""

import ast
import random
from pathlib import Path

PACKAGE = "project"
HEAD = "import array\nimport dataclasses\nimport enum\nimport functools\nimport types\n"
STYLES = ("name", "alias", "module", "dotted", "inner")
# How an element is written: {a} and {b} are its numbers, {refs} an expression over n, {other} what it is made from.
KINDS = {
    "constant": "{name} = {a}",
    "table": "{name} = {{'key': {a}, 'other': [{b}, ({a}, {{{b}}})]}}",
    "function": "def {name}(n, step={b}):\n{inner}    local = n + step\n    return local + {a} + {refs}",
    "keyword": "def {name}(n, *, step={b}):\n{inner}    return n + step * {a} + {refs}",
    "nested": (
        "def {name}(n):\n{inner}    def within(m):\n        return [m * {a} + k for k in range({b} % 3)]\n"
        "    return sum(within(n)) + {refs}"
    ),
    "decorator": (
        "def {name}(fn):\n    @functools.wraps(fn)\n    def wrapper(*args):\n{deeper}        n = args[-1]\n"
        "        return fn(*args) + {a} + {refs}\n    return wrapper"
    ),
    "decorated": "@{decorator}\ndef {name}(n):\n{inner}    return n + {a} + {refs}",
    "cached": "@functools.lru_cache\ndef {name}(n):\n{inner}    return n + {a} + {refs}",
    "class": (
        "class {name}({base}):\n    attribute = {a}\n    def method(self, n):\n{deeper}"
        "        return n + self.attribute + self.extra + {refs}\n"
        "    @property\n    def size(self):\n        return {b}\n"
        "    @classmethod\n    def make(cls, n):\n        return cls().method(n)"
    ),
    "root": (
        "class {name}:\n    extra = {a}\n    @staticmethod\n    def helper(n):\n        return n * {b}\n"
        "    def inherited(self, n):\n{deeper}        return self.helper(n) + {refs}"
    ),
    "dataclass": (
        "@dataclasses.dataclass\nclass {name}:\n    field: int = {a}\n    def method(self, n):\n{deeper}"
        "        return self.field * {b} + n + {refs}"
    ),
    "enum": "class {name}(enum.Enum):\n    ONE = {a}\n    TWO = ({b}, 'two')",
    "closure": "def make_{name}(k):\n    def made(n):\n{deeper}        return n + k + {a} + {refs}\n    return made\n"
    "{name} = make_{name}({b})",
    "lambda": "{name} = lambda n, step={b}: n + step + {a} + {refs}",
    "partial": "{name} = functools.partial({function}, {a})",
    "functions": "{name} = {{'first': {function}, 'rest': [{function}]}}",
    "namespace": "{name} = types.SimpleNamespace(first={a}, rest=[{b}])",
    "array": "{name} = array.array('i', [{a}, {b}])",
    "wraps": "def {name}(n):\n{inner}    try:\n        return {refs} + {a}\n    finally:\n        n += {b}",
}
USES = {
    "constant": "{0}",
    "table": "{0}['key']",
    "function": "{0}(n)",
    "keyword": "{0}(n)",
    "nested": "{0}(n)",
    "decorated": "{0}(n)",
    "cached": "{0}(n)",
    "class": "({0}().method(n) + {0}().size + {0}.make(n) + {0}().inherited(n))",
    "root": "({0}().inherited(n) + {0}.extra)",
    "dataclass": "{0}().method(n)",
    "enum": "({0}.ONE.value + {0}.TWO.value[0])",
    "closure": "{0}(n)",
    "lambda": "{0}(n)",
    "partial": "{0}()",
    "functions": "({0}['first'](n) + {0}['rest'][0](n))",
    "namespace": "({0}.first + {0}.rest[0])",
    "array": "({0}[0] + {0}[1])",
    "wraps": "{0}(n)",
}
FUNCTIONS = ("function", "keyword", "nested", "decorated", "cached", "closure", "lambda", "wraps")
BY_CLASS = ("class", "root", "dataclass")


class Element:
    """A definition in a module."""

    def __init__(self, chance: random.Random, kind: str, module: int, name: str, before: "list[Element]") -> None:
        self.kind = kind
        self.module = module
        self.name = name
        self.a, self.b = chance.randrange(1, 1000), chance.randrange(1, 1000)
        usable = [each for each in before if each.kind in USES]
        self.refs = [(each, self._style(chance, each)) for each in chance.sample(usable, min(len(usable), 2))]
        self.others = {
            "base": [each for each in before if each.kind == "root"],
            "decorator": [each for each in before if each.kind == "decorator"],
            "function": [each for each in before if each.kind in FUNCTIONS],
        }
        self.chosen = {role: chance.choice(each) for role, each in self.others.items() if each}

    def _style(self, chance: random.Random, other: "Element") -> str:
        return chance.choice(STYLES) if other.module != self.module else "own"

    def uses(self) -> "list[Element]":
        """What it refers to."""
        roles = [role for role in self.chosen if f"{{{role}}}" in KINDS[self.kind]]
        refs = [other for other, _ in self.refs] if "{refs}" in KINDS[self.kind] else []
        return refs + [self.chosen[role] for role in roles]

    def write(self) -> tuple[str, set[str]]:
        """Its text, and the imports that its module needs for it."""
        text, imports, terms, inner = KINDS[self.kind], set(), ["0"], ""
        for other, style in self.refs if "{refs}" in text else ():
            if style == "inner" and "{inner}" not in text and "{deeper}" not in text:
                style = "name"
            line, name = self._reach(other, style)
            if style == "inner":
                inner += f"    {line}\n"
            elif line:
                imports.add(line)
            terms.append(USES[other.kind].format(name))
        roles = {}
        for role, other in self.chosen.items():
            if f"{{{role}}}" in text:
                line, roles[role] = self._reach(other, "module" if other.module != self.module else "own")
                imports.add(line)
        deeper = "".join(f"    {line}\n" for line in inner.splitlines())
        return text.format(
            name=self.name, a=self.a, b=self.b, refs=" + ".join(terms), inner=inner, deeper=deeper, **roles
        ), imports - {""}

    def _reach(self, other: "Element", style: str) -> tuple[str, str]:
        module = f"{PACKAGE}.m{other.module}"
        return {
            "own": ("", other.name),
            "name": (f"from {module} import {other.name}", other.name),
            "inner": (f"from {module} import {other.name}", other.name),
            "alias": (f"from {module} import {other.name} as {other.name}_alias", f"{other.name}_alias"),
            "module": (f"from {PACKAGE} import m{other.module}", f"m{other.module}.{other.name}"),
            "dotted": (f"import {module}", f"{module}.{other.name}"),
        }[style]


class Project:
    """Modules of elements, those of the first module refer to nothing in others."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._modules = chance.randrange(4, 7)
        self._looks = [0] * self._modules
        self.elements: list[Element] = []
        for module in range(self._modules):
            kinds = ["root", "decorator", "function"] if module == 0 else []
            kinds += chance.choices([*KINDS], k=5)
            for kind in kinds:
                name = f"{kind}_{len(self.elements)}"
                self.elements.append(Element(chance, kind, module, name, list(self.elements)))

    def write(self, folder: Path) -> None:
        """Write the files."""
        (folder / PACKAGE).mkdir(exist_ok=True)
        (folder / PACKAGE / "__init__.py").touch()
        for module in range(self._modules):
            texts, imports = [], set()
            for element in self.elements:
                if element.module == module:
                    text, needed = element.write()
                    texts.append(text)
                    imports |= needed
            (folder / PACKAGE / f"m{module}.py").write_text(self._look(module, [HEAD, *sorted(imports), *texts]))

    def _look(self, module: int, texts: list[str]) -> str:
        """The text of a module, in one of several looks that mean the same."""
        look = self._looks[module]
        text = f"# look {look}\n{'# more' * (look % 4)}\n" + ("\n" * (look % 5) + "\n").join(texts) + "\n"
        if look % 3 == 1:
            text = ast.unparse(ast.parse(text))
        if look % 3 == 2:
            tree = ast.parse(text)
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    node.body.insert(0, ast.Expr(ast.Constant(f"Says {look}.")))
            for node in tree.body:  # those of functions within functions are code that runs
                if isinstance(node, ast.FunctionDef):
                    node.returns = ast.Constant(f"type {look}")
            text = ast.unparse(tree)
        return text

    def edit_looks(self) -> None:
        """Change comments, docstrings, annotations of what is returned, empty lines and the layout of one module."""
        self._looks[self._chance.randrange(self._modules)] += 1

    def edit_meaning(self) -> set[Element]:
        """Change a number, what is referred to, a base class, a decorator or what something is made from.

        Returns the elements that are others now.
        """
        element = self._chance.choice(self.elements)
        how = self._chance.choice(["a", "b", "refs", "role", "swap", "a", "b"])
        if how == "swap":
            other = self._chance.choice([each for each in self.elements if each.kind == element.kind])
            element.a, element.b, other.a, other.b = other.a, other.b, element.a, element.b
            return {element, other}
        if how == "refs" and element.refs:
            element.refs.pop(self._chance.randrange(len(element.refs)))
        elif how == "role" and element.chosen:
            role = self._chance.choice([*element.chosen])
            element.chosen[role] = self._chance.choice(element.others[role])
        else:
            setattr(element, "b" if how == "b" else "a", self._chance.randrange(1, 1000))
        return {element}

    def reached_from(self, element: Element) -> set[Element]:
        """An element and all that it refers to, and they in turn."""
        found, queue = set(), [element]
        while queue:
            each = queue.pop()
            if each not in found:
                found.add(each)
                queue += each.uses()
        return found
