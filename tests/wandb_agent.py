"""Runs W&B's real sweep agent without its server: the sweep's cells are handed out here, in order.

Called as ``python wandb_agent.py FILE JOBS.json``; ``FILE`` is a sweep file, jobs are ``{"run_id", "args"}``.
"""

import json
import sys
from pathlib import Path

import wandb
from wandb import wandb_agent
from wandb.apis.public import sweeps
from wandb.sdk.launch.sweeps.utils import load_sweep_config


def main(file: str, jobs: str) -> None:
    config = load_sweep_config(file)
    waiting = json.loads(Path(jobs).read_text())
    waiting = [
        {"type": "run", "run_id": job["run_id"], "program": config["program"], "args": job["args"]} for job in waiting
    ]

    def heartbeat(_api, _agent, _metrics, running):
        if running:
            return []
        return [waiting.pop(0)] if waiting else [{"type": "exit"}]

    sweeps._sweep_with_runs = lambda *_: {"config": Path(file).read_text()}
    sweeps._register_agent = lambda *_args, **_named: {"id": "agent"}
    sweeps._agent_heartbeat = heartbeat
    wandb.Api = lambda: None
    wandb_agent.Agent.POLL_INTERVAL = 0.2
    wandb_agent.run_agent("sweep1", project="windows")


main(*sys.argv[1:])
