"""Nothing that comes off the network is ever unpickled or executed."""

import ast
from pathlib import Path

import lightning_edge.train.message as any_module_of_train

FOLDER = Path(any_module_of_train.__file__).parent
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__", "import_module", "load", "loads_pickle"}
CALLS |= {"broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list"}
CALLS |= {"recv_object_list", "send_object_list", "unsafe_load"}


def names_used(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0], node.lineno
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            # `model.eval()` and such are methods; only the builtins' and torch's matter here
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id in {"torch", "np", "importlib", "builtins"}:
                yield node.func.attr, node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, node.lineno


def test_nothing_in_train_unpickles():
    files = sorted(FOLDER.rglob("*.py"))
    assert {"message.py", "codec.py", "transport.py"} <= {file.name for file in files}
    found = [
        f"{file.name}:{line} uses {name}"
        for file in files
        for name, line in names_used(ast.parse(file.read_text()))
        if name in MODULES | CALLS
    ]
    assert not found, "\n".join(found)


def test_the_check_sees_what_it_looks_for():
    bad = "import pickle\nfrom torch import load\ntorch.load(f)\nnp.load(f)\nexec(x)\nm.eval()"
    assert {name for name, _ in names_used(ast.parse(bad))} >= {"pickle", "load", "exec"}
    assert "eval" not in {name for name, _ in names_used(ast.parse("module.eval()"))}
