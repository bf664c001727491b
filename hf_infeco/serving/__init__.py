"""
An HTTP endpoint of OpenAI's shape over `flying.FlyingManager`: `hf-infeco serve`. Needs the extra `serve`.
"""

from .app import Limits, build_app
from .processes import Settings, serve

__all__ = ["Limits", "Settings", "build_app", "serve"]
