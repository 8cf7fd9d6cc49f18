"""What must never happen, looked for in the sources and in everything that a run leaves."""

from __future__ import annotations

import ast
import configparser
import json
import threading
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from lives import KEY, Driver
from packaging.requirements import Requirement
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from p2o.config import Config, ConfigError, load_evaluation

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Dotted name → call, for every call in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_source_loads_a_pickle_runs_text_or_calls_a_shell(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {name.name.split(".")[0] for name in node.names} & UNPICKLERS
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            assert {name.name for name in node.names} <= {"UnpicklingError", "dumps"}, "these run nothing"
    for name, call in calls(tree):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"), name
        assert keywords.get("shell", "False") == "False"
        assert keywords.get("allow_pickle", "False") == "False"
        asked_for = keywords.get("trust_remote_code", "False")
        assert asked_for == "False" or asked_for.endswith(".trust_remote_code"), "the configuration alone may say so"
        if name.endswith("torch.load"):
            assert keywords["weights_only"] == "True"


def test_foreign_code_runs_only_where_it_is_asked_for_by_name(configure: Callable[..., Config]) -> None:
    assert not configure().model.trust_remote_code
    assert configure("model.trust_remote_code=true").model.trust_remote_code
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert "trust_remote_code: true" not in path.read_text().lower(), path


def test_dependencies_are_bounded_and_withdrawn_releases_shut_out() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    requirements = [Requirement(line) for text in lists for line in text.split("\n") if line]
    with (ROOT / "pyproject.toml").open("rb") as file:
        requirements += map(Requirement, tomllib.load(file)["build-system"]["requires"])
    assert {"torch", "vllm", "hypothesis", "setuptools"} <= {requirement.name for requirement in requirements}
    for requirement in requirements:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators & {"<", "<=", "==", "~="}, f"{requirement} has no upper bound"
    (lightning,) = [requirement for requirement in requirements if requirement.name == "lightning"]
    assert not {"2.6.2", "2.6.3"} & set(lightning.specifier.filter(["2.6.2", "2.6.3", "2.6.6"]))
    assert "2.6.6" in lightning.specifier


@pytest.fixture
def indiscreet() -> Iterator[str]:
    """A teacher that says the key that it was given wherever it can, and between that fails."""
    count = iter(range(10**6))

    class Teacher(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            key, number = self.headers["Authorization"], next(count)
            text = f"I was told {key}.\n```\nThink of {key} and count in steps of {number}.\n```"
            answer: Any = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
            if number % 2 == 0:
                answer = {"error": {"message": f"overloaded, {key}", "code": key}}
            body = json.dumps(answer).encode()
            self.send_response(500 if number % 2 == 0 else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Key", key)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send_error(503, explain=f"no models for {self.headers['Authorization']}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Teacher)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


@pytest.mark.timeout(600)
def test_a_planted_key_is_in_nothing_that_a_run_leaves(indiscreet: str, driver: Driver, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    teacher = ("reflector=openai", f"reflector.base_url={indiscreet}", "reflector.model=kimi")
    patience = ("reflector.api_key_env=TEACHER_KEY", "reflector.backoff_s=0.01", "reflector.max_retries=2")
    life = driver.live(run_dir, *teacher, *patience)
    assert life.code == 0, life.said
    secret = KEY.encode()
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert [path for path in files if secret in path.read_bytes()] == []
    assert KEY not in life.said
    assert "[api key]" in (run_dir / "evolution" / "epoch-000" / "journal.jsonl").read_text(), "it was sent back"
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    assert next(event.value for event in events.Scalars("evolution/failures/server")) >= 1


TEACHER = ("+experiment=teacher_ref", "reflector=openai", "reflector.model=m", "reflector.api_key_env=PATH")
ADDRESS = f"http://me:{KEY}@host/v1"


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("reflector.base_url", (*TEACHER, f"reflector.base_url={ADDRESS}")),
        ("reflector.base_url", (*TEACHER, "gepa=off", f"reflector.base_url=https://{KEY}@host")),
        ("rollout.urls", ("rollout=vllm_server", f"rollout.urls=[http://host:8000,'{ADDRESS}']")),
        ("data.path", ("data=jsonl", f"data.path='{ADDRESS}'")),
        ("model.path", ("model=hub", f"model.path='{ADDRESS}'")),
    ],
)
def test_a_key_in_an_address_is_refused_before_it_is_written(
    key: str, overrides: tuple[str, ...], tmp_path: Path, configure: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError, match=rf"{key} holds a password") as caught:
        configure(*overrides)
    assert KEY not in "".join(line for line in str(caught.value).splitlines() if "password" in line)
    assert not (tmp_path / "run").exists()


def test_a_key_in_an_address_of_an_evaluation_is_refused_too() -> None:
    with initialize_config_module("p2o.conf", version_base="1.3"):
        composed = compose(
            "evaluate", overrides=["benchmarks=[gsm8k]", f"compare='{ADDRESS}'", "model.path=m", "run_dir=r"]
        )
    with pytest.raises(ConfigError, match="compare holds a password"):
        load_evaluation(composed)
