"""What deploy/ names is there: commands, options, settings, ports, paths, metrics, files; and nothing floats."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from holdfast import __version__
from holdfast.cli import main
from holdfast.config import Settings
from holdfast.config.settings import _ENV_OTHERS, load
from holdfast.gateway.app import OPERATIONS
from holdfast.gateway.probes import PATHS as WORKER_PATHS
from holdfast.telemetry.table import BY_NAME, Metric

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PORT = Settings().port
SHUTDOWN_S = 30  # drain_s and all that ends after it
PATHS = {operation.path for operation in OPERATIONS}
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KUBERNETES: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
NGINX = (DEPLOY / "nginx.conf").read_text()
ALERTS = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "holdfast.json").read_text())
PARTS = [each for each in KUBERNETES if each["kind"] == "Deployment"]
EXPRESSIONS = [(rule["alert"], rule["expr"]) for rule in ALERTS] + [
    (panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]
]


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for part in PARTS:
        for container in part["spec"]["template"]["spec"]["containers"]:
            yield part, container


def commands() -> list[tuple[str, list[str]]]:
    """Each command line of ours that deploy/ starts."""
    found = [
        (name, service["command"])
        for name, service in COMPOSE["services"].items()
        if service["image"].startswith("holdfast")
    ]
    found += [(part["metadata"]["name"], container["args"]) for part, container in containers()]
    found += [("Dockerfile", json.loads(re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1]))]
    lines = re.findall(r"^    holdfast (\w[^#\n]*)", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    return found + [("README.md", shlex.split(line)) for line in lines]


@pytest.mark.parametrize(("where", "line"), commands(), ids=lambda value: str(value)[:60])
def test_every_command_is_one_of_ours_with_its_options(where: str, line: list[str]) -> None:
    """A renamed option would be found by whoever deploys."""
    name, *arguments = line
    context = main.commands[name].make_context(name, arguments)
    assert name in ("serve", "worker", "key")
    assert context.params.get("port") in (None, PORT)


def test_every_variable_is_a_setting() -> None:
    """An unknown one ends the start."""
    given: dict[str, str] = dict(re.findall(r"(HOLDFAST_[A-Z_]+)=(\S+)", DOCKERFILE))
    for service in COMPOSE["services"].values():
        environment = service.get("environment") or {}
        given |= {name: re.sub(r"\$\{.*", "x", str(value)) for name, value in environment.items()}
    for each in KUBERNETES:
        if each["kind"] == "ConfigMap":
            given |= each["data"]
    for _, container in containers():
        given |= {entry["name"]: entry.get("value", "redis://x:1/0") for entry in container["env"]}
    assert {"HOLDFAST_STORE", "HOLDFAST_PROFILE", "HOLDFAST_API_KEYS_FILE", "HOLDFAST_MODEL_KEY"} <= set(given)
    assert set(given) & _ENV_OTHERS == {"HOLDFAST_MODEL_KEY"}
    assert load({}, directory=DEPLOY, environ=given).profile == "production"


def test_gateways_without_a_worker_name_no_model() -> None:
    """They refuse to start with one: workers say what is served."""
    for name, service in COMPOSE["services"].items():
        if "--no-worker" in service.get("command", []):
            assert not [each for each in service["environment"] if each.startswith("HOLDFAST_MODEL")], name
    for part, container in containers():
        named = {each["configMapRef"]["name"] for each in container["envFrom"]}
        assert ("holdfast-model" in named) == (part["metadata"]["labels"]["part"] == "worker")
        assert "--no-worker" not in container["args"] or "HOLDFAST_MODEL_KEY" not in {
            e["name"] for e in container["env"]
        }


def test_images_are_pinned_and_run_without_privileges() -> None:
    """What was tested is what runs, and it is not root."""
    images = [service["image"] for service in COMPOSE["services"].values()]
    images += [container["image"] for _, container in containers()]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    for image in images:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+[\w.-]*", image), image
    assert {image for image in images if image.startswith("holdfast")} == {f"holdfast:{__version__}"}
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    assert DOCKERFILE.index("USER 10001") < DOCKERFILE.index("ENTRYPOINT")
    for part, container in containers():
        assert part["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert "latest" not in DOCKERFILE + (DEPLOY / "compose.yaml").read_text() + (DEPLOY / "kubernetes.yaml").read_text()


def test_ports_and_paths_are_those_of_the_server() -> None:
    """Probes of a path that is not there would keep a server out, or restart it for ever."""
    assert f"EXPOSE {PORT}" in DOCKERFILE
    assert f"http://127.0.0.1:{PORT}/livez" in DOCKERFILE
    upstreams = re.findall(r"server (\S+):(\d+) ", NGINX)
    assert [port for _, port in upstreams] == [str(PORT)] * 2
    assert {name for name, _ in upstreams} <= set(COMPOSE["services"])
    for name, _ in upstreams:
        assert COMPOSE["services"][name]["expose"] == [str(PORT)]
    listens = re.findall(r"listen (\d+);", NGINX)
    assert COMPOSE["services"]["nginx"]["ports"] == [f"{port}:{port}" for port in listens]
    for path in re.findall(r"location = (\S+) ", NGINX):
        assert path in PATHS
    assert scraped("holdfast") == [f"{name}:{port}" for name, port in upstreams]
    gateway = next(container for part, container in containers() if part["metadata"]["labels"]["part"] == "gateway")
    assert [port["containerPort"] for port in gateway["ports"]] == [PORT]
    probed = {gateway[f"{probe}Probe"]["httpGet"]["path"]: probe for probe in ("startup", "liveness", "readiness")}
    assert probed == {"/startupz": "startup", "/livez": "liveness", "/readyz": "readiness"}
    service = next(each for each in KUBERNETES if each["kind"] == "Service")
    labels = next(part for part in PARTS if part["metadata"]["name"].endswith("gateway"))["spec"]["template"][
        "metadata"
    ]
    assert service["spec"]["selector"].items() <= labels["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] == gateway["ports"][0]["name"]


def health_port(line: list[str]) -> int:
    """Where a worker answers probes, by its command line."""
    return main.commands["worker"].make_context("worker", line[1:]).params["health_port"]


def scraped(job: str) -> list[str]:
    """What Prometheus asks under this name."""
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    found = {each["job_name"]: each for each in jobs}[job]
    assert found["metrics_path"] in PATHS
    assert found["authorization"]["credentials_file"] == "/run/secrets/metrics_key"
    return found["static_configs"][0]["targets"]


def test_workers_are_probed_and_scraped_where_they_answer() -> None:
    """A worker that nobody asks is missed by its runs; one that is asked at the wrong place is restarted for ever."""
    workers = {name: each for name, each in COMPOSE["services"].items() if each.get("command", [""])[0] == "worker"}
    targets = []
    for name, service in workers.items():
        port = health_port(service["command"])
        assert service["expose"] == [str(port)]
        assert f"http://127.0.0.1:{port}/livez" in service["healthcheck"]["test"][-1]
        assert service["environment"]["HOLDFAST_API_KEYS_FILE"] == "/run/secrets/metrics_keys"
        assert service["secrets"] == ["metrics_keys"], "agents run here: no key of a client's"
        targets.append(f"{name}:{port}")
    assert scraped("holdfast-worker") == targets
    assert len(targets) == 2
    part, container = next(each for each in containers() if each[0]["metadata"]["labels"]["part"] == "worker")
    port = health_port(container["args"])
    assert container["ports"] == [{"name": "probes", "containerPort": port}]
    probes = {container[f"{probe}Probe"]["httpGet"]["path"]: probe for probe in ("startup", "liveness", "readiness")}
    assert probes == {"/startupz": "startup", "/livez": "liveness", "/readyz": "readiness"}
    assert set(probes) < set(WORKER_PATHS)
    assert {container[f"{probe}Probe"]["httpGet"]["port"] for probe in probes.values()} == {"probes"}
    template = part["spec"]["template"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port)
    keys = next(each for each in template["spec"]["volumes"] if each["name"] == "metrics-keys")
    assert [each["path"] for each in keys["secret"]["items"]] == ["metrics_keys"]
    assert {"name": "HOLDFAST_API_KEYS_FILE", "value": "/secrets/metrics_keys"} in container["env"]


def test_what_a_worker_alone_can_say_is_watched() -> None:
    """Its supervisor counts who was replaced, and no gateway hears of that."""
    shown = [expression for _, expression in EXPRESSIONS]
    assert any("holdfast-worker" in each and each.startswith("up{") for each in shown)
    assert any("holdfast_worker_replacements_total" in each and "holdfast-worker" in each for each in shown)
    assert any(each.startswith("sum(holdfast_ready{") and "holdfast-worker" in each for each in shown)
    assert any(each == "holdfast_ready == 0" for each in shown), "of either job"


def test_nothing_is_killed_while_it_drains() -> None:
    """A grace that is shorter than the shutdown makes every deploy a crash."""
    assert Settings().drain_s < SHUTDOWN_S
    for name, service in COMPOSE["services"].items():
        if service["image"].startswith("holdfast"):
            assert int(service["stop_grace_period"].removesuffix("s")) > SHUTDOWN_S, name
    for part, container in containers():
        spec = part["spec"]["template"]["spec"]
        pause = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
        assert spec["terminationGracePeriodSeconds"] > SHUTDOWN_S + int(pause[1])
        assert spec["enableServiceLinks"] is False


def test_every_file_that_is_mounted_is_there() -> None:
    """A missing file becomes an empty directory in the container."""
    ignored = (DEPLOY / ".gitignore").read_text().split()
    named = {volume.split(":")[0] for service in COMPOSE["services"].values() for volume in service.get("volumes", [])}
    for path in sorted(name for name in named if name.startswith("./")):
        assert (DEPLOY / path).exists(), path
    assert {secret["file"].split("/")[1] + "/" for secret in COMPOSE["secrets"].values()} == set(ignored)
    assert named - {name for name in named if name.startswith("./")} == set(COMPOSE["volumes"])
    for path in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for name in path.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in (ROOT / ".dockerignore").read_text().split()


def rows_of(expression: str) -> Iterator[tuple[str, Metric]]:
    for name in set(re.findall(r"holdfast_\w+", expression)):
        yield name, BY_NAME.get(name) or BY_NAME[re.sub(r"_(bucket|sum|count)$", "", name)]


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_every_metric_and_label_is_served_and_explained(where: str, expression: str) -> None:
    """A rule on a metric that is not there never fires."""
    page = (ROOT / "docs" / "observability.md").read_text()
    known = {"job", "le", "instance"}
    for name, row in rows_of(expression):
        assert f"| {row.name} |" in page, where
        assert name.endswith("_bucket") == (row.kind == "histogram"), name
        assert row.kind != "counter" or re.search(rf"(rate|increase)\({name}", expression), name
        known |= set(row.labels)
    labels = re.findall(r"(\w+)=~?\"", expression)
    labels += [name for by in re.findall(r"by \(([^)]*)\)", expression) for name in by.replace(" ", "").split(",")]
    assert set(labels) <= known, (where, labels)
    assert expression.count("(") == expression.count(")")


def test_every_alert_says_what_and_why() -> None:
    """Whoever is woken reads what is the matter and where to look; the list is the one that was asked for."""
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        assert len(rule["annotations"]["description"]) > 20
    wanted = [
        "StartFailed",
        "NotReady",
        "SyntheticRunOld",
        "RunStuck",
        "StopSlow",
        "LoopLag",
        "BreakerOpen",
        "ReaperBusy",
        "Drops",
    ]
    assert {f"Holdfast{name}" for name in wanted} <= {rule["alert"] for rule in ALERTS}


def test_the_dashboard_has_no_panel_twice_and_none_on_top_of_another() -> None:
    """Grafana would draw one of them only."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
