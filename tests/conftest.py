"""What all tests share: hypothesis without deadlines, because a loaded machine is no fault of the code."""

from hypothesis import settings

settings.register_profile("edgepose", deadline=None)
settings.load_profile("edgepose")
