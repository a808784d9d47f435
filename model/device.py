"""The device and the threads of a rank."""

import os

import torch

from model.machine import TrainingMachine, threads_of_rank


def claim_device(machine: TrainingMachine) -> str:
    """Set this rank's threads, and take its device: cpu, or cuda:N, which is the current one from then on."""
    torch.set_num_threads(threads_of_rank(machine))
    if machine.device == "cpu":
        return "cpu"
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    torch.cuda.set_device(device)
    return device
