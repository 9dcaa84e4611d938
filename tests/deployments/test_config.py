from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deployments import config as config_module
from deployments.access.fields import EdgeLimitsConfig, TlsConfig
from deployments.config import Config, RayCluster, SimulatedCluster, load_config, parse_config
from deployments.config_messages import ConfigError, reference

SHIPPED = sorted((Path(config_module.__file__).parent / "configs").glob("*.yaml"))


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return str(caught.value).splitlines()


def test_the_shortest_configuration_has_documented_defaults() -> None:
    config = parse_config("models: [{source: /srv/models/tiny/}]")
    assert (config.model.name, config.model.shape, config.model.replicas) == ("tiny", "auto", 1)
    assert config.cluster == SimulatedCluster(islands=2, gpus_per_island=2, gpu_memory_gib=1.0)
    assert (config.endpoint.host, config.endpoint.port, config.endpoint.ingresses) == ("127.0.0.1", 8000, 1)
    assert (config.limits.start_timeout_s, config.limits.drain_timeout_s, config.limits.step_timeout_s) == (600, 30, 60)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_load(path: Path) -> None:
    config = load_config(path)
    assert yaml.safe_load(path.read_text())["models"][0]["source"] == config.model.source


def test_a_ray_cluster() -> None:
    config = parse_config("models: [{source: x}]\ncluster: {kind: ray, address: '10.0.0.7:6379'}")
    assert config.cluster == RayCluster(address="10.0.0.7:6379")
    config = parse_config("models: [{source: x}]\ncluster: {kind: ray, address: '[::1]:6379'}")
    assert config.cluster == RayCluster(address="[::1]:6379")


def test_integers_are_taken_where_a_number_is_wanted_and_dates_are_text() -> None:
    config = parse_config("models: [{source: x, name: 2024-01-31}]\nlimits: {start_timeout_s: 5}")
    assert config.limits.start_timeout_s == 5.0
    assert config.model.name == "2024-01-31"


def test_engine_arguments_are_kept_as_they_are() -> None:
    config = parse_config("models: [{source: x, engine: {hf_overrides: {rope: {factor: 2.5}}, sizes: [1, null, a]}}]")
    assert config.model.engine == {"hf_overrides": {"rope": {"factor": 2.5}}, "sizes": [1, None, "a"]}


BAD: list[tuple[str, str]] = [
    # Not a mapping with models
    ("", "configuration: is empty; give at least models with one source"),
    ("# only a comment\n", "configuration: is empty; give at least models with one source"),
    ("tiny-llama", "configuration: holds 'tiny-llama'; give a mapping with at least models"),
    ("[1, 2]", "configuration: holds [1, 2]; give a mapping with at least models"),
    ("endpoint: {port: 80}", "models: missing; give a list"),
    ("models:", "models: null is not accepted; give a list"),
    ("models: tiny-llama", "models: 'tiny-llama' is not accepted; give a list"),
    ("models: {source: x}", "models: {'source': 'x'} is not accepted; give a list"),
    ("models: []", "models: [] is not accepted; give at least one model"),
    # YAML
    ("models: [", "configuration: line 1, column 10: expected the node content, but found '<stream end>'"),
    ("a: b: c", "configuration: line 1, column 5: mapping values are not allowed here"),
    ("models:\n- source: x\n  source: y", "configuration: line 3, column 3: 'source' is given twice"),
    ("models: [{source: x}]\nmodels: []", "configuration: line 2, column 1: 'models' is given twice"),
    ("a: 1\n---\nb: 2", "configuration: line 2, column 1: but found another document"),
    ("[1]: 2\n", "configuration: line 1, column 1: found unhashable key"),
    ("a: *b", "configuration: line 1, column 4: found undefined alias 'b'"),
    (
        "a: !!python/name:os.system x",
        "configuration: line 1, column 4: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/name:os.system'",
    ),
    ("a: !!int x", "configuration: is not YAML that can be read: invalid literal for int() with base 10: 'x'"),
    # One model
    ("models: [tiny-llama]", "models[0]: 'tiny-llama' is not accepted; give a mapping"),
    ("models: [{name: x}]", "models[0].source: missing; give a non-empty string"),
    ("models: [{source: ''}]", "models[0].source: '' is not accepted; give a non-empty string"),
    ("models: [{source: 7}]", "models[0].source: 7 is not accepted; give a non-empty string"),
    (
        "models: [{source: x, name: 'my model'}]",
        "models[0].name: 'my model' is not accepted; "
        "give letters, digits and . _ : @ / + -, beginning with a letter or a digit",
    ),
    ("models: [{source: x, shape: 4}]", "models[0].shape: 4 is not accepted; give a string"),
    ("models: [{source: x, replicas: 0}]", "models[0].replicas: 0 is not accepted; give an integer of at least 1"),
    ("models: [{source: x, replicas: 1.0}]", "models[0].replicas: 1.0 is not accepted; give an integer of at least 1"),
    ("models: [{source: x, replicas: '2'}]", "models[0].replicas: '2' is not accepted; give an integer of at least 1"),
    ("models: [{source: x, replicas: yes}]", "models[0].replicas: true is not accepted; give an integer of at least 1"),
    (
        "models: [{source: x}, {source: y, port: 0}]",
        "models[1].port: 0 is not accepted; give an integer from 1 to 65535 or null",
    ),
    ("models: [{source: x, replica: 2}]", "models[0].replica: unknown name; did you mean replicas?"),
    (
        "models: [{source: x, zzz: 2}]",
        "models[0].zzz: unknown name; give one of source, name, shape, replicas, port, engine, tool_call_parser, "
        "reasoning_parser, chat_template, simulated, slo",
    ),
    ("models: [{source: x, 5: 2}]", "models[0][5]: 5 is not accepted as a name; give text"),
    ("models: [{source: x, engine: 5}]", "models[0].engine: 5 is not accepted; give a mapping"),
    ("models: [{source: x, engine: {5: 5}}]", "models[0].engine[5]: 5 is not accepted; give a JSON value"),
    ("models: [{source: x, engine: {a: .inf}}]", "models[0].engine.a: inf is not accepted; give a JSON value"),
    (
        "models: [{source: x, engine: {a: [!!binary aa==]}}]",
        r"models[0].engine.a: b'i' is not accepted; give a JSON value",
    ),
    (
        "models: [{source: x, tool_call_parser: true}]",
        "models[0].tool_call_parser: true is not accepted; give a string or null",
    ),
    # Cluster
    (
        "models: [{source: x}]\ncluster: ray",
        "cluster: 'ray' is not accepted; give a mapping with kind 'local' or 'ray' or 'simulated'",
    ),
    ("models: [{source: x}]\ncluster: {islands: 3}", "cluster.kind: missing; give 'local' or 'ray' or 'simulated'"),
    (
        "models: [{source: x}]\ncluster: {kind: k8s}",
        "cluster.kind: 'k8s' is not accepted; give 'local' or 'ray' or 'simulated'",
    ),
    (
        "models: [{source: x}]\ncluster: {kind: simulated, islands: 0}",
        "cluster.islands: 0 is not accepted; give an integer from 1 to 64",
    ),
    (
        "models: [{source: x}]\ncluster: {kind: simulated, gpus_per_island: 73}",
        "cluster.gpus_per_island: 73 is not accepted; give an integer from 1 to 72",
    ),
    (
        "models: [{source: x}]\ncluster: {kind: simulated, gpu_memory_gib: -1}",
        "cluster.gpu_memory_gib: -1 is not accepted; give a number above 0 and at most 1024",
    ),
    (
        "models: [{source: x}]\ncluster: {kind: simulated, address: auto}",
        "cluster.address: unknown name; give one of kind, islands, gpus_per_island, gpu_memory_gib",
    ),
    (
        "models: [{source: x}]\ncluster: {kind: ray, address: 'ray://head:10001'}",
        "cluster.address: 'ray://head:10001' is not accepted; give 'auto' or host:port",
    ),
    (
        "models: [{source: x}]\ncluster: {kind: ray, address: 'head:99999'}",
        "cluster.address: 'head:99999' is not accepted; give 'auto' or host:port",
    ),
    # Endpoint and limits
    ("models: [{source: x}]\nendpoint:", "endpoint: null is not accepted; give a mapping"),
    (
        "models: [{source: x}]\nendpoint: {port: 70000}",
        "endpoint.port: 70000 is not accepted; give an integer from 1 to 65535",
    ),
    ("models: [{source: x}]\nendpoint: {host: ''}", "endpoint.host: '' is not accepted; give a non-empty string"),
    ("models: [{source: x}]\nendpoint: {prot: 80}", "endpoint.prot: unknown name; did you mean port?"),
    (
        "models: [{source: x}]\nlimits: {start_timeout_s: 0}",
        "limits.start_timeout_s: 0 is not accepted; give a number above 0",
    ),
    (
        "models: [{source: x}]\nlimits: {drain_timeout_s: -1}",
        "limits.drain_timeout_s: -1 is not accepted; give a number of at least 0",
    ),
    (
        "models: [{source: x}]\nlimits: {step_timeout_s: 1.5}",
        "limits.step_timeout_s: 1.5 is not accepted; give an integer of at least 1",
    ),
    (
        "models: [{source: x}]\nlimits: {start_timeout_s: .nan}",
        "limits.start_timeout_s: nan is not accepted; give a number above 0",
    ),
    ("models: [{source: x}]\nendpiont: {}", "endpiont: unknown name; did you mean endpoint?"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message for _, message in BAD])
def test_each_mistake_has_one_line(text: str, message: str) -> None:
    assert problems(text) == [message]


def test_all_mistakes_are_reported_at_once() -> None:
    text = "models: [{source: x, replicas: 0}]\ncluster: {kind: ray, adress: auto}\nendpoint: {port: 0}"
    assert problems(text) == [
        "models[0].replicas: 0 is not accepted; give an integer of at least 1",
        "cluster.adress: unknown name; did you mean address?",
        "endpoint.port: 0 is not accepted; give an integer from 1 to 65535",
    ]


def test_a_long_value_is_cut_to_one_line() -> None:
    (line,) = problems("models: [{source: x, replicas: '" + "9" * 5000 + "'}]")
    assert len(line) < 200


@pytest.mark.parametrize("text", ["[" * 3000, "models: [{source: x, engine: {a: " + "[" * 500 + "]" * 500 + "}}]"])
def test_deep_nesting_is_a_message(text: str) -> None:
    assert len(problems(text)) == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no\.yaml: cannot be read \(No such file or directory\); give an existing YAML"
    ):
        load_config(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "latin1.yaml"
    path.write_bytes("models: [{source: tiny-llama}]  # für später".encode("latin-1"))
    with pytest.raises(ConfigError, match="byte 35 is not UTF-8; save the file as UTF-8 text"):
        load_config(path)


def test_messages_about_the_text_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("models: [")
    with pytest.raises(ConfigError, match=r"mine\.yaml: line 1, column 10"):
        load_config(path)


def test_an_error_survives_the_way_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ConfigError(["a: 1", "b: 2"])))
    assert (error.problems, str(error)) == (("a: 1", "b: 2"), "a: 1\nb: 2")


def test_reference_has_every_field_with_type_default_and_description() -> None:
    text = reference(Config)
    for line in (
        "models[].source  (a non-empty string; required)",
        "models[].shape  (a string; default 'auto')",
        "models[].port  (an integer from 1 to 65535 or null; default null)",
        "models[].chat_template  (a string or null; default null)",
        "cluster.kind  ('simulated'; default 'simulated')",
        "cluster.address  (a string; default 'auto')",
        "endpoint.port  (an integer from 1 to 65535; default 8000)",
        "control.host  (a non-empty string; default '127.0.0.1')",
        "control.port  (an integer from 1 to 65535; default 8001)",
        "limits.drain_timeout_s  (a number of at least 0; default 30.0)",
        "limits.hold_timeout_s  (a number of at least 0; default 300.0)",
        "limits.max_queued_requests  (an integer of at least 1; default 256)",
        "limits.max_ttft_s  (a number above 0; default 30.0)",
        "limits.floor  (a number from 0 to 1; default 0.0)",
        "models[].slo.ttft  (a string or null; default null)",
    ):
        assert f"{line}\n    " in text
    # Fields that are sections themselves: models[].simulated, models[].slo, endpoint.tls, endpoint.limits, control.tls.
    values = sum(len(section.model_fields) for section in [*sections(), TlsConfig]) - 5
    assert text.count("\n    ") == values


def sections() -> list[Any]:
    """The classes whose fields are plain values."""
    return [
        config_module.ModelConfig,
        config_module.SimulatedEngineConfig,
        config_module.SimulatedCluster,
        config_module.LocalCluster,
        config_module.RayCluster,
        config_module.EndpointConfig,
        config_module.ControlConfig,
        config_module.LimitsConfig,
        config_module.TelemetryConfig,
        config_module.SloConfig,
        EdgeLimitsConfig,
        TlsConfig,
    ]


FIELDS = sorted({name for section in [Config, *sections()] for name in section.model_fields})
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
    | st.sampled_from(["simulated", "ray", "auto", "tp2", "x", "host:1"])
)
KEYS = st.sampled_from(FIELDS) | st.text(max_size=5) | st.integers(-2, 2) | st.none() | st.booleans()
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
LIKELY = st.fixed_dictionaries(
    {
        "models": st.lists(
            st.fixed_dictionaries({"source": SCALARS}, optional=dict.fromkeys(FIELDS[:8], DOCUMENTS)), max_size=2
        )
    },
    optional={"cluster": DOCUMENTS, "endpoint": DOCUMENTS, "limits": DOCUMENTS},
)


def is_config_or_message(text: str) -> bool:
    try:
        return isinstance(parse_config(text), Config)
    except ConfigError as error:
        return bool(error.problems) and all(line and "\n" not in line for line in error.problems)


@given(LIKELY | DOCUMENTS)
def test_any_document_is_a_config_or_a_message(document: object) -> None:
    assert is_config_or_message(yaml.safe_dump(document))


@given(st.text(alphabet="abms: -[]{}!&*?|>'\"#%@`,\n\t\x00\x85é0.1", max_size=60))
def test_any_text_is_a_config_or_a_message(text: str) -> None:
    assert is_config_or_message(text)
