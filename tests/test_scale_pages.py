"""The guides on very many classes and on devices quote their programs, and their manifests work."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def program(name):
    """A program of `docs/`, as a module, and the text of a page."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text(page):
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def test_the_guide_has_the_tables_of_the_benchmarks():
    page = program("many_classes")
    assert page.table() in text("many_classes.md")
    assert page.sharded() in text("many_classes.md")
    assert page.counted() in text("many_classes.md")


def test_ten_million_counts_stay_about_a_gigabyte_and_some_seconds():
    found = json.loads((ROOT / "benchmarks" / "class_counts.json").read_text())["rows"]
    assert max(row["classes"] for row in found) == 10**7
    for row in found:
        assert row["mebibytes"] < 1000 or row["case"] == "ClassErrors, not compiled"
        assert row["mebibytes"] < 1100 and row["seconds"] < 20


def test_memory_for_each_device_falls_with_their_number_and_nothing_else_changes():
    found = json.loads((ROOT / "benchmarks" / "jax_devices.json").read_text())["memory"]
    one, *others = found["rows"]
    for row in others:
        for name in ("variables", "gradient", "temporary"):
            assert row[name] < 1.02 * one[name] / row["devices"]
        assert row["loss_difference"] < 1e-5 and row["gradient_difference"] < 1e-5


def test_the_guide_has_what_was_calculated():
    page = program("scaling")
    assert page.assumptions() in text("devices.md")
    assert page.table() in text("devices.md")


def test_a_calculation_by_hand():
    page = program("scaling")
    found = page.steps(8_142, 437_513, 90, 8, "jax")
    parameters = 23.5e6 + 2048 * 8_142
    assert found["sent"] == pytest.approx(2 * 7 / 8 * 4 * parameters)
    assert found["wire"] == pytest.approx(found["sent"] / 450e9)
    assert found["reading"] == pytest.approx(64 / (12 * page.read()))
    step = found["reading"] + found["wire"]  # Reading takes longer than computing.
    assert found["hours"] == pytest.approx(90 * 437_513 / 512 * step / 3600)
    whole, parts = (page.steps(10**6, 1, 1, 64, engine) for engine in ("jax", "classes"))
    assert whole["memory"] / parts["memory"] == pytest.approx(8, rel=0.15)


# What the controllers' published types demand and allow, as far as the manifest goes.
CONTAINER = {"name": str, "image": str, "env": list, "command": list, "resources": dict}
SCHEMA = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": str},
    "spec": {
        "failurePolicy": {"maxRestarts": int},
        "network": {"enableDNSHostnames": bool, "subdomain": str},
        "replicatedJobs": [
            {
                "name": str,
                "replicas": int,
                "template": {  # batch/v1 JobTemplateSpec
                    "spec": {
                        "backoffLimit": int,
                        "completionMode": "Indexed",
                        "completions": int,
                        "parallelism": int,
                        "template": {  # v1 PodTemplateSpec
                            "spec": {
                                "restartPolicy": "Never",
                                "containers": [{**CONTAINER, "volumeMounts": list}],
                                "volumes": list,
                            }
                        },
                    }
                },
            }
        ],
    },
}


def check(value, schema, where="manifest"):
    if isinstance(schema, dict):
        assert isinstance(value, dict) and value.keys() == schema.keys(), where
        for name in schema:
            check(value[name], schema[name], f"{where}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, where
        for part in value:
            check(part, schema[0], f"{where}[]")
    elif isinstance(schema, type):
        assert type(value) is schema, where
    else:
        assert value == schema, where


def cluster_of(script, **environment):
    """The `TF_CONFIG` that a script of Bash has when its last command begins."""
    before = script[: script.index("exec ")]
    done = subprocess.run(
        ["bash", "-euc", before + '\nprintf %s "$TF_CONFIG"'],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_job_set_has_the_form_of_its_schema_and_each_worker_finds_the_others():
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load((ROOT / "examples" / "cluster" / "jobset.yaml").read_text())
    check(manifest, SCHEMA)
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    workers = {each["name"]: each["value"] for each in container["env"]}["WORKERS"]
    assert spec["completions"] == spec["parallelism"] == int(workers)
    found = cluster_of(container["command"][-1], WORKERS=workers, JOB_COMPLETION_INDEX="1")
    subdomain = manifest["spec"]["network"]["subdomain"]
    host = f"{manifest['metadata']['name']}-{job['name']}-0-{{}}.{subdomain}"
    assert found == {
        "cluster": {"worker": [host.format(i) + ":2222" for i in range(2)]},
        "task": {"type": "worker", "index": 1},
    }


def test_the_slurm_script_gives_each_task_its_place():
    script = (ROOT / "examples" / "cluster" / "train.slurm").read_text()
    inner = script[script.index("bash -euc '") + len("bash -euc '") : script.rindex("'")]
    found = cluster_of(inner, WORKERS='"a:2222","b:2222"', SLURM_PROCID="1")
    assert found["cluster"]["worker"] == ["a:2222", "b:2222"] and found["task"]["index"] == 1
    names = script[script.index("| sed") : script.index(")\nexport")]
    done = subprocess.run(
        ["bash", "-c", f"printf 'a\\nb\\n' {names}"], capture_output=True, text=True
    )
    assert done.stdout.strip() == '"a:2222","b:2222"'
