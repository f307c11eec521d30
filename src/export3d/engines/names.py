"""The names of the engines; nothing heavy is imported here, since the command line shows them."""

from __future__ import annotations

from typing import Literal

EngineName = Literal["auto", "reference", "torch", "openvino"]
