"""The web viewer: a server over one run, and the page it serves."""

from t3vis.viewer.app import make_app

__all__ = ["make_app"]
