"""Stands for strop in a container with two GPUs: it starts two ranks, which talk over gloo."""

from strop.cli import main
from strop.commands import train

train.ranks_to_start = lambda asked, place, engine: 2 if place.ranks == 1 else 1
main()
