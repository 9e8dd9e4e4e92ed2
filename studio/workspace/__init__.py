"""The use cases: every button, command and route is one method here."""

from studio.workspace.workspace import Workspace

__all__ = ["Workspace"]
