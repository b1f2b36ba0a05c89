"""A machine is known by what decides its speed."""

import dataclasses
import json

from sparsewright.hardware import this_machine


def test_the_same_machine_has_the_same_fingerprint():
    assert this_machine().fingerprint == this_machine().fingerprint


def test_another_processor_or_instruction_set_is_another_machine():
    machine = this_machine()
    assert dataclasses.replace(machine, cpu="another").fingerprint != machine.fingerprint
    assert dataclasses.replace(machine, isa=()).fingerprint != machine.fingerprint
    assert dataclasses.replace(machine, cores=machine.cores + 1).fingerprint != machine.fingerprint


def test_an_upgrade_changes_the_versions_but_not_the_machine():
    machine = this_machine()
    upgraded = dataclasses.replace(machine, torch="99.0")
    assert upgraded.fingerprint == machine.fingerprint
    assert upgraded.versions != machine.versions


def test_the_description_is_plain_data():
    data = json.loads(json.dumps(this_machine().to_data()))
    assert data["cores"] >= 1
    assert data["memory_bytes"] > 0
    assert len(data["fingerprint"]) == 64
